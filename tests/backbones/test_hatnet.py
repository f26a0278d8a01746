"""What is HAT-Net's own; tests/backbones/test_contract.py holds what every backbone must do."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmsimvit import HATNet, convert_state_dict
from mmsimvit.analysis.flops import count_complexity
from mmsimvit.backbones.hatnet import Attention, HierarchicalAttention, Norm, Stage, Stem
from mmsimvit.layers import InvertedResidual, mask_padding
from mmsimvit.weights import convert_head
from tests import golden
from tests.conftest import ROOT, load_tool

GOLDEN = golden.load('hatnet')
SMALL = GOLDEN['small']['HATNet']['arch']


def random(module):
    """With parameters as far from their first values as trained ones."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.3)
    return module.double().eval()


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def normalise(norm, x):
    """``(B, H, W, C)``, over all but the first dimension."""
    mean = x.mean((1, 2, 3), keepdim=True)
    variance = (x - mean).square().mean((1, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias


def attend(query, key, value, num_heads):
    """``(B, N, C)`` and ``(B, M, C)`` twice, heads in the order of channels."""
    heads = [((q @ k.transpose(-2, -1)) / q.shape[-1]**0.5).softmax(-1) @ v
             for q, k, v in zip(*(x.chunk(num_heads, -1) for x in (query, key, value)), strict=True)]
    return torch.cat(heads, -1)


@pytest.mark.parametrize('size', [(8, 8), (5, 7), (1, 1)])
def test_norms_are_over_the_whole_map(size):
    """Also where torch has no kernel that serves: it crashes if the map has no gradient and the weights have."""
    norm = random(Norm(6))
    x = 3 + 2 * image(2, *size, 6)
    expected = normalise(norm, x)
    grads = []
    for with_gradient in (True, False):
        norm.zero_grad()
        out = norm(x.clone().requires_grad_(with_gradient))
        torch.testing.assert_close(out, expected)
        out.pow(3).sum().backward()
        grads.append([norm.weight.grad, norm.bias.grad])
    torch.testing.assert_close(*grads)
    if size != (1, 1):
        assert not torch.allclose(expected, F.layer_norm(x, (6, ), norm.weight, norm.bias, 1e-6))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_norms_of_low_precision_have_statistics_of_float32(dtype):
    norm = random(Norm(6)).to(dtype)
    x = (10 + image(2, 40, 40, 6)).to(dtype)
    expected = normalise(norm.double(), x.double())
    norm.to(dtype)
    for is_trained in (True, False):
        with torch.set_grad_enabled(is_trained):
            out = norm(x)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)
    assert norm.float()(x).dtype == torch.float32  # as under autocast on a GPU, where residual sums would lose by less


def test_stems_end_without_norm_and_activation():
    stem = random(Stem(3, 8))
    x = image(2, 3, 21, 34)
    half = F.conv2d(x, stem.conv1.weight, stem.conv1.bias, stride=2, padding=1)
    half = normalise(stem.norm, half.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    half = half * half.sigmoid()
    expected = F.conv2d(half, stem.conv2.weight, stem.conv2.bias, stride=2, padding=1)
    assert half.shape[1:] == (16, 11, 17) and expected.shape[2:] == (6, 9)
    torch.testing.assert_close(stem(x), expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize('size', [(8, 12), (9, 14), (6, 3), (1, 1)])
def test_both_steps_of_attention(size):
    """Grid by grid and cell by cell, each cut off at the border. What the first step gives is added to the raw map, what the
    second gives to what it takes, before the projection."""
    attention = random(HierarchicalAttention(8, 2, 4, 3))
    x = image(2, *size, 8)
    query, key, value = attention.qkv(normalise(attention.norm, x)).chunk(3, -1)
    local = torch.empty_like(x)
    for top in range(0, size[0], 4):
        for left in range(0, size[1], 4):
            grid = [part[:, top:top + 4, left:left + 4] for part in (query, key, value)]
            out = attend(*(part.flatten(1, 2) for part in grid), 2)
            local[:, top:top + 4, left:left + 4] = out.view_as(grid[0])
    z = normalise(attention.local_norm, x + local)
    cells = [[z[:, top:top + 3, left:left + 3].mean((1, 2)) for left in range(0, size[1], 3)] for top in range(0, size[0], 3)]
    pooled = torch.stack([torch.stack(row, 1) for row in cells], 1)
    key, value = attention.kv(normalise(attention.pool_norm, pooled)).flatten(1, 2).chunk(2, -1)
    b = attend(attention.q(z).flatten(1, 2), key, value, 2).view_as(z)
    torch.testing.assert_close(attention(x, mask_padding(x, 4)), attention.proj(b + z))


def test_attention_of_the_last_stage_has_one_step():
    attention = random(Attention(8, 2))
    x = image(2, 3, 5, 8)
    query, key, value = attention.qkv(normalise(attention.norm, x)).flatten(1, 2).chunk(3, -1)
    torch.testing.assert_close(attention(x), attention.proj(attend(query, key, value, 2).view_as(x)))
    kinds = [type(block.attn) for stage in HATNet('tiny').stages for block in stage.blocks]
    assert kinds == [HierarchicalAttention] * 10 + [Attention] * 3


@pytest.mark.parametrize('kernel_size', [3, 5])
def test_ffns_have_no_biases_and_a_norm_at_both_ends(kernel_size):
    model = random(HATNet('tiny', depths=(1, 1, 1, 1), kernel_sizes=(kernel_size, 3, 3, 3), out_indices=(0, )))
    block = model.stages[0].blocks[0]
    assert [name for name, _ in block.ffn.named_parameters()] == ['fc1.weight', 'dwconv.weight', 'fc2.weight']
    attention = {name: module.bias for name, module in block.attn.named_modules() if isinstance(module, nn.Linear)}
    assert list(attention) == ['qkv', 'q', 'kv', 'proj'] and all(bias is not None for bias in attention.values())
    x = image(1, 6, 8, 48)
    x = x + block.attn(x, mask_padding(x, 8))
    hidden = F.conv2d(normalise(block.norm1, x).permute(0, 3, 1, 2), block.ffn.fc1.weight[..., None, None])
    hidden = hidden * hidden.sigmoid()
    hidden = F.conv2d(hidden, block.ffn.dwconv.weight, padding=kernel_size // 2, groups=384)
    hidden = hidden * hidden.sigmoid()
    hidden = F.conv2d(hidden, block.ffn.fc2.weight[..., None, None]).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(image(1, 6, 8, 48), mask_padding(x, 8)), x + normalise(block.norm2, hidden))


def test_returned_maps_are_left_alone(monkeypatch):
    """What follows would change them if its activations worked in place."""
    kept = []
    forward = Stage.forward

    def keep(stage, x):
        out = forward(stage, x)
        kept.append(out.clone())
        return out

    monkeypatch.setattr(Stage, 'forward', keep)
    x = image(1, 3, 64, 96).float()
    before = x.clone()
    for out, expected in zip(HATNet(SMALL).eval()(x), kept, strict=True):
        assert torch.equal(out, expected)
    assert torch.equal(x, before)


def test_maps_have_no_norms():
    assert all(stage.norm is None for stage in HATNet('tiny').stages)


@pytest.mark.parametrize(('arch', 'kernel_sizes'), [
    ('tiny', (3, 3, 3, 3)), ('small', (3, 3, 3, 3)), ('medium', (5, 3, 5, 3)), ('large', (3, 3, 3, 3))])
def test_medium_has_larger_kernels_in_stages_1_and_3(arch, kernel_sizes):
    with torch.device('meta'):
        model = HATNet(arch)
    found = [{block.ffn.dwconv.kernel_size for block in stage.blocks} for stage in model.stages]
    assert found == [{(size, size)} for size in kernel_sizes]


@pytest.mark.parametrize(('arch', 'gmacs', 'published'), [
    ('tiny', 2.13, 2.0), ('small', 4.55, 4.3), ('medium', 8.78, 8.3), ('large', 12.07, 11.5)])
def test_counts_are_above_the_published_ones(arch, gmacs, published):
    """By about 5 per cent, as those of the published code are."""
    with torch.device('meta'):
        found = count_complexity(HATNet(arch, out_indices=(3, )), (224, 224)).total.macs / 1e9
    assert found == pytest.approx(gmacs, abs=0.005) and 1.04 < found / published < 1.07


def test_grids_are_as_large_as_published():
    """The number is the side of a grid, of which there are 7 x 7, 4 x 4 and 2 x 2 at 224 pixels; nothing is padded there."""
    sizes = []
    for size in (224, 448):
        model, sizes = HATNet('tiny', out_indices=(2, )).eval(), []
        for stage in model.stages:
            stage.blocks[-1].attn.qkv.register_forward_hook(lambda _, inputs, out, sizes=sizes: sizes.append(out.shape[:2]))
        with torch.no_grad():
            model(torch.randn(1, 3, size, size))
        assert sizes == [(count * (size // 224)**2, pixels) for count, pixels in ((49, 64), (16, 49), (4, 49))]


def test_names_that_nothing_uses_are_dropped():
    state = {name: torch.zeros(shape) for name, shape in GOLDEN['variants']['tiny']['state'].items()}
    assert sum('proj_norm' in name for name in state) == 26
    found = convert_state_dict('hatnet', state)
    assert len(found) == len(state) - 28 and not any('proj_norm' in name or 'classifier' in name for name in found)
    assert found['stages.0.blocks.1.ffn.fc1.weight'].shape == (384, 48)
    assert found['stages.2.blocks.5.ffn.dwconv.weight'].shape == (960, 1, 3, 3)
    assert found['stages.3.blocks.0.attn.qkv.weight'].shape == (1152, 384)


def test_published_classifiers_are_loaded(tmp_path):
    """As they are, through the converter, and into a detector that needs fewer maps."""
    published = GOLDEN['variants']['tiny_small']
    state_dict = golden.state_dict(published)
    torch.save(state_dict, tmp_path / 'published.pth')
    load_tool(ROOT / 'tools/convert_checkpoint.py').main(
        [str(tmp_path / 'published.pth'), str(tmp_path / 'ours.pth'), '--system', 'hatnet'])
    case = published['cases'][0]
    for name in ('published.pth', 'ours.pth'):
        model = HATNet('tiny', grid_sizes=(4, 4, 2, 1), out_indices=(1, 2),
                       init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / name))).eval()
        model.init_weights()
        with torch.no_grad():
            for out, expected in zip(model(golden.image(case['input']).float()), case['outputs'][1:3], strict=True):
                assert golden.error(out, expected) < 5e-4
    head = convert_head('hatnet', 'tiny', state_dict)
    assert torch.equal(head['head.fc.weight'], state_dict['classifier.1.weight'])
    assert torch.equal(head['head.fc.bias'], state_dict['classifier.1.bias'])


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = HATNet('tiny')
    model.init_weights()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            error = 4 / (2 * module.weight.numel())**0.5
            assert module.weight.std().item() == pytest.approx(0.02, rel=error), name
            assert module.bias is None or not module.bias.any(), name
        if isinstance(module, Norm):
            assert module.weight.eq(1).all() and not module.bias.any() and (module.num_groups, module.eps) == (1, 1e-6)


def test_drop_path_grows_over_all_blocks():
    model = HATNet('tiny', drop_path_rate=0.12)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.01 * index for index in range(13)])
    assert all(isinstance(block.ffn, InvertedResidual) for stage in model.stages for block in stage.blocks)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(kernel_sizes=(3, 4, 3, 3)), r"arch\['kernel_sizes'\] of HATNet must be 4 odd positive.*got \(3, 4, 3, 3\)"),
    (dict(grid_sizes=(8, 7, 7)), r"arch\['grid_sizes'\] of HATNet must be 4 positive whole numbers.*got \(8, 7, 7\)"),
])
def test_refuses_bad_archs(change, message):
    with pytest.raises(ValueError, match=message):
        HATNet('tiny', **change)
