"""What is LIT's own; tests/backbones/test_contract.py holds what every backbone must do."""
import itertools
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from mmsimvit import LIT
from mmsimvit.backbones import lit
from mmsimvit.backbones.lit import Attention, DeformableMerging, PositionEmbedding
from mmsimvit.layers import RelativePositionBias


def test_training_starts_from_plain_merging():
    """The offsets are zero, so that the deformable convolution is an ordinary one."""
    torch.manual_seed(0)
    model = LIT('ti', out_indices=(1, ))
    assert not model.stages[1].patch_embed[0].offset.weight.any()  # also without init_weights
    model.init_weights()
    merging = model.stages[1].patch_embed[0].eval()
    assert not merging.offset.weight.any() and not merging.offset.bias.any()
    x = torch.randn(1, 64, 12, 10)
    plain = F.gelu(merging.norm(merging.conv(x))).permute(0, 2, 3, 1)
    torch.testing.assert_close(merging(x), plain)
    assert merging.conv.weight.std().item() == pytest.approx((1 / (3 * 64 * 4))**0.5, rel=0.05)  # torch's own initialisation


def test_offsets_move_taps_down_and_right():
    """Offsets are (down, right), tap after tap: moving the last tap by (-1, -1) has it read where the first one reads."""
    merging = DeformableMerging(1, 1).eval()
    for p in merging.parameters():
        torch.nn.init.zeros_(p)
    merging.norm.weight.data.fill_(1)
    merging.conv.weight.data[0, 0, 1, 1] = 1
    merging.offset.bias.data[6:] = torch.tensor([-1., -1.])
    x = torch.arange(16.).view(1, 1, 4, 4)
    expected = F.gelu(x[0, 0, ::2, ::2] / (1 + 1e-5)**0.5)
    torch.testing.assert_close(merging(x)[0, ..., 0], expected)
    merging.offset.bias.data[6:] = torch.tensor([0., -1.])  # the lower left pixel
    torch.testing.assert_close(merging(x)[0, ..., 0], F.gelu(x[0, 0, 1::2, ::2] / (1 + 1e-5)**0.5))


@pytest.mark.parametrize('arch', ['ti', 's'])
def test_early_stages_have_no_attention(arch):
    model = LIT(arch)
    assert [any(isinstance(module, Attention) for module in stage.modules()) for stage in model.stages] == [
        False, False, True, True]


def test_position_embeddings_are_resized_wherever_the_grid_differs():
    """Also to grids with as many positions as the first stage's, on which the published code fails."""
    embedding = PositionEmbedding(4, 28)
    out = embedding(torch.zeros(1, 56, 56, 4))
    assert out.shape == (1, 56, 56, 4)
    torch.testing.assert_close(embedding(torch.zeros(1, 28, 28, 4)), embedding.embedding.permute(0, 2, 3, 1))


def test_embeddings_and_tables_of_other_grids_are_resized_when_loaded():
    arch = {**LIT.arch_zoo['ti'], 'depths': (1, 1, 1, 1)}
    small, large = LIT({**arch, 'position_grids': (8, 4, 2, 1)}), LIT(arch)
    small.load_state_dict(large.state_dict())
    for a, b in zip(small.stages, large.stages):
        embedding = b.patch_embed[1].embedding
        expected = F.interpolate(embedding, size=a.patch_embed[1].embedding.shape[2:], mode='bilinear')
        torch.testing.assert_close(a.patch_embed[1].embedding, expected)


def test_initialisation_of_positions():
    torch.manual_seed(0)
    for arch in ('ti', 's'):
        model = LIT(arch)
        model.init_weights()
        positions = torch.cat([p.flatten() for name, p in model.named_parameters() if 'embedding' in name or 'table' in name])
        assert positions.std().item() == pytest.approx(0.02, rel=0.02)


def test_maps_of_tiny_have_no_norms_and_of_small_three():
    assert [stage.norm is not None for stage in LIT('ti').stages] == [False, False, False, False]
    assert [stage.norm is not None for stage in LIT('s').stages] == [False, True, True, True]
    assert [stage.norm is not None for stage in LIT('s', out_indices=(2, 3)).stages] == [False, False, True, True]


@pytest.mark.parametrize('size', [(9, 6), (4, 11)])
def test_queries_a_few_rows_at_a_time_are_the_whole(size, monkeypatch):
    torch.manual_seed(0)
    attention = Attention(8, 2, 5).double()
    results = []
    for chunk_bytes in (1 << 30, 1, 3 * 2 * size[0] * size[1]**2 * 8):  # at once, each row, three rows
        monkeypatch.setattr(lit, 'CHUNK_BYTES', chunk_bytes)
        x = torch.randn(2, *size, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            out = attention(x)
        attention.zero_grad()
        out.square().sum().backward()
        results.append([out, x.grad, *(p.grad.clone() for p in attention.parameters())])
        assert max(kept) < 2 * (size[0] * size[1])**2 or chunk_bytes == 1 << 30  # no weights of a whole map
        with torch.no_grad():
            torch.testing.assert_close(attention(x), out)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_biases_are_of_the_displacement():
    bias = RelativePositionBias(3, 1)
    bias.table.data[:, 0] = torch.arange(25.)
    found = bias(3, 3)[0].view(3, 3, 3, 3)  # row and column of the query, of the key
    for r, c, i, j in itertools.product(range(3), repeat=4):
        assert found[r, c, i, j].item() == pytest.approx((r - i + 2) * 5 + c - j + 2, abs=1e-4)


def test_without_torchvision_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchvision.ops', None)
    with pytest.raises(ImportError, match=rf'torchvision cannot be imported.*for torch {torch.__version__.split("+")[0]}'):
        LIT('ti')


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_numbers_that_are_none_go_on_to_the_loss(value):
    """torchvision takes offsets of NaN for indices of pixels, and the process ends, also of a training that diverges."""
    model = LIT('s').eval()
    images = torch.rand(2, 3, 64, 64)
    images[0, 0, 0, 0] = value
    with torch.no_grad():
        for out in model(images):
            assert not out[0].isfinite().all()
            assert out[1].isfinite().all()
        model.stages[1].patch_embed.offset.weight[0, 0, 0, 0] = value  # of offsets alone; infinitely far the map is zero
        assert model(images[1:])[1].isnan().any() == math.isnan(value)
        model.stages[1].patch_embed.offset.weight.normal_(std=1e20)
        assert model(images[1:])[1].isfinite().all()
