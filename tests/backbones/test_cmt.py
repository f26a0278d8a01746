"""What is CMT's own; tests/backbones/test_contract.py holds what every backbone must do."""
import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmsimvit import CMT, CheckpointError
from mmsimvit.backbones.cmt import (
    FFN,
    Activated,
    Attention,
    Block,
    LocalConv,
    PositionBias,
    StemEmbed,
    align_rows,
    resample_grids,
    run,
)
from mmsimvit.cli.convert_checkpoint import convert
from mmsimvit.weights import match
from tests import golden
from tests.conftest import ROOT

SMALL = golden.load('cmt')['small']['CMT']['arch']


def random(module):
    """With parameters and statistics as far from their first values as trained ones."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.3)
    for name, buffer in module.named_buffers():
        if 'running' in name:
            buffer.uniform_(0.5, 2)
    return module.double().eval()


def conv(layer, x, **options):
    return F.conv2d(x, layer.weight, layer.bias, **options)


def batch_norm(norm, x):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)


def test_stem_activates_before_it_normalises():
    stem = random(StemEmbed(3, 4, 6, recompute=True))
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    y = conv(stem.conv, x, stride=2, padding=1)
    for layer, options in zip(stem.layers, (dict(padding=1), dict(padding=1), dict(stride=2)), strict=True):
        y = conv(layer.conv, batch_norm(layer.norm, F.gelu(y)), **options)
    expected = F.layer_norm(y.permute(0, 2, 3, 1), (6, ), stem.norm.weight, stem.norm.bias, 1e-5)
    torch.testing.assert_close(stem(x), expected)


def test_ffn_activates_before_it_normalises_and_after_its_inner_skip():
    ffn = random(FFN(4, 10, recompute=True))
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    u = batch_norm(ffn.local.norm, F.gelu(conv(ffn.fc1, x.permute(0, 3, 1, 2))))
    w = F.gelu(u + conv(ffn.local.conv, u, padding=1, groups=10))
    y = batch_norm(ffn.norm, conv(ffn.fc2.conv, batch_norm(ffn.fc2.norm, w)))
    torch.testing.assert_close(ffn(x), y.permute(0, 2, 3, 1))


@pytest.mark.parametrize('reduction', [1, 2])
def test_attention_has_a_bias_for_each_pair_of_pixels(reduction):
    """Pixel by pixel. Keys and values have one reduced map, whose convolution is depth-wise and followed by a batch norm."""
    attention = random(Attention(6, 2, reduction))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    bias = torch.randn(2, 24, 24 // reduction**2, dtype=torch.float64)
    tokens = x
    if reduction > 1:
        assert attention.reduction.weight.shape == (6, 1, 2, 2)
        tokens = conv(attention.reduction, x.permute(0, 3, 1, 2), stride=reduction, groups=6)
        tokens = batch_norm(attention.norm, tokens).permute(0, 2, 3, 1)
    query, key, value = attention.q(x), attention.k(tokens), attention.v(tokens)
    out = torch.zeros_like(x)
    columns = tokens.shape[2]
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        for row in range(4):
            for column in range(6):
                logits = torch.einsum('bc,bhwc->bhw', query[:, row, column, part], key[..., part]) / 3**0.5
                for i in range(tokens.shape[1]):
                    for j in range(columns):
                        logits[:, i, j] += bias[head, row * 6 + column, i * columns + j]
                weights = logits.flatten(1).softmax(1).view_as(logits)
                out[:, row, column, part] = torch.einsum('bhw,bhwc->bc', weights, value[..., part])
    torch.testing.assert_close(attention(x, bias), attention.proj(out))


def test_local_perception_is_in_every_block_and_never_dropped():
    model = CMT(SMALL)
    assert all(isinstance(block.lpu, LocalConv) for stage in model.stages for block in stage.blocks)
    block = Block(Attention(4, 1, 1), FFN(4, 8, recompute=True), 4, drop_path=1 - 1e-9).train()
    x, bias = torch.randn(2, 3, 5, 4), torch.zeros(1, 15, 15)
    expected = x + F.conv2d(x.permute(0, 3, 1, 2), block.lpu.weight, block.lpu.bias, padding=1, groups=4).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x, bias), expected)  # both branches are dropped, that of attention too


def test_epsilons():
    model = CMT(SMALL, map_norms=(0, 1, 2, 3))
    found = {name: module.eps for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    outer = {name for name in found if '.patch_embed.' in name}
    assert len(outer) == 4 and {found[name] for name in outer} == {1e-5}
    assert {found[name] for name in found.keys() - outer} == {1e-6}
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize(('arch', 'widths', 'size', 'parameters', 'tables'), [
    ('ti', (165, 331, 662, 1324), 160, 7661546, 75000), ('xs', (196, 392, 784, 1568), 192, 13274368, 155520),
    ('s', (256, 512, 1024, 2048), 224, 24027840, 288120), ('b', (304, 608, 1216, 2432), 256, 43160476, 491520)])
def test_variants_are_the_published(arch, widths, size, parameters, tables):
    with torch.device('meta'):
        model = CMT(arch)
    assert tuple(stage.blocks[0].ffn.fc1.out_channels for stage in model.stages) == widths
    assert model.arch['image_size'] == (size, size)
    counts = [parameter.numel() for name, parameter in model.named_parameters() if name.endswith('position_bias.table')]
    assert len(counts) == 4  # one for each stage, which its blocks share
    assert sum(counts) == tables
    assert sum(p.numel() for p in model.parameters()) - tables == parameters


@pytest.mark.parametrize(('config', 'parameters'), [
    ('ti_imagenet_160', 9492426), ('xs_imagenet_192', 15247208), ('s_imagenet', 26256160), ('b_imagenet_256', 45715076)])
def test_classifiers_have_the_published_parameters(config, parameters):
    cfg = Config.fromfile(ROOT / f'configs/cmt/cmt_{config}.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == parameters


def count_resampling(monkeypatch):
    calls = []
    resample = PositionBias.resample
    monkeypatch.setattr(PositionBias, 'resample', lambda self, *args: calls.append(self) or resample(self, *args))
    return calls


def test_tables_are_unchanged_at_their_own_size():
    bias = PositionBias(2, (8, 12), 2, 'table')
    assert bias(8, 12) is bias.table
    with torch.no_grad():
        assert bias.eval()(8, 12).data_ptr() == bias.table.data_ptr()
    grid = PositionBias(2, (8, 12), 2, 'grid')
    assert grid(8, 12) is grid.table


@pytest.mark.parametrize('size', [(16, 16), (4, 8), (8, 14)])
def test_tables_are_resampled_as_images_of_queries_by_keys(size):
    """Element by element: bicubic with a = -0.75, pixel centres at halves, borders repeated."""
    bias = PositionBias(2, (8, 12), 2, 'table').double()

    def weights(length, new_length):
        matrix = torch.zeros(new_length, length, dtype=torch.float64)
        for i in range(new_length):
            at = (i + 0.5) * length / new_length - 0.5
            for j in range(int(at // 1) - 1, int(at // 1) + 3):
                d = abs(at - j)
                weight = 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
                matrix[i, min(max(j, 0), length - 1)] += weight
        return matrix

    queries = size[0] * size[1]
    expected = weights(96, queries) @ bias.table @ weights(24, queries // 4).T
    torch.testing.assert_close(bias(*size), expected)
    expected.sum().backward()
    gradient, bias.table.grad = bias.table.grad, None
    bias(*size).sum().backward()
    torch.testing.assert_close(bias.table.grad, gradient)


def test_resampled_grids_keep_places():
    """What is linear in the places of query and key stays nearly so (bicubic with a = -0.75 is not exact), away from the
    borders."""
    def places(height, width):
        row, column = (torch.arange(length, dtype=torch.float64).add(0.5) / length for length in (height, width))
        return (row[:, None] + 3 * column).flatten()

    def table(height, width):
        return (places(height, width)[:, None] - 2 * places(height // 2, width // 2))[None]

    found = resample_grids(table(16, 24), (16, 24), (32, 24), 2)
    assert found.shape == (1, 768, 192)
    inside = torch.zeros(32, 24, dtype=torch.bool)
    inside[6:26, 4:20] = True
    keys = torch.zeros(16, 12, dtype=torch.bool)
    keys[4:12, 2:10] = True
    pick = (slice(None), inside.flatten(), slice(None))
    torch.testing.assert_close(found[pick][..., keys.flatten()], table(32, 24)[pick][..., keys.flatten()],
                               rtol=0, atol=0.02)
    as_images = F.interpolate(table(16, 24)[None], size=(768, 192), mode='bicubic')[0]
    assert (as_images - table(32, 24)).abs().max() > 0.5  # the paper's way does not keep them


def test_resampling_is_done_once_for_each_stage_and_kept_in_evaluation(monkeypatch):
    calls = count_resampling(monkeypatch)
    model = CMT(SMALL, depths=(2, 2, 2, 2))
    model(torch.randn(2, 3, 64, 64))
    assert len(calls) == 4  # and not 8, for the blocks
    model.eval()
    with torch.no_grad():
        first = model(torch.ones(1, 3, 64, 64))
        model(torch.ones(1, 3, 40, 50))  # which is padded to the same size
        assert len(calls) == 8
        model(torch.ones(1, 3, 32, 64))
        again = model(torch.ones(1, 3, 64, 64))
    assert len(calls) == 16
    assert all(map(torch.equal, first, again))
    assert model(torch.ones(1, 3, 64, 64))[0].requires_grad  # what is kept has no gradients
    assert len(calls) == 20


@pytest.mark.parametrize('change', ['loading', 'optimizer', 'averaging', 'dtype'])
def test_what_is_kept_follows_the_table(change):
    bias = PositionBias(2, (8, 12), 2, 'table').eval()
    with torch.no_grad():
        before = bias(4, 4)
        if change == 'loading':
            bias.load_state_dict({'table': bias.table + 1})
        elif change == 'optimizer':
            bias.table.grad = torch.full_like(bias.table, -10.)
            torch.optim.SGD(bias.parameters(), lr=0.1).step()
        elif change == 'averaging':  # which goes round the version of a tensor, before the mode is set
            bias.table.data.add_(1)
            bias.eval()
        else:
            bias.double()
            before = before.double() - 1
        torch.testing.assert_close(bias(4, 4), before + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('keys', [25, 32])
def test_rows_are_aligned_without_another_number(keys):
    bias = torch.randn(2, 6, keys, requires_grad=True)
    aligned = align_rows(bias)
    assert torch.equal(aligned, bias) and aligned.stride() == (6 * 32, 32, 1)
    assert torch.equal(torch.autograd.grad((aligned * 2).sum(), bias)[0], torch.full_like(bias, 2))


@pytest.mark.parametrize('training', [True, False])
def test_autocast_has_one_bias_for_all_blocks(training, monkeypatch):
    """In its precision, and not a copy in each block."""
    seen = []
    forward = Attention.forward
    monkeypatch.setattr(Attention, 'forward', lambda self, x, bias: seen.append(bias) or forward(self, x, bias))
    model = CMT(SMALL, depths=(2, 2, 2, 2)).train(training)
    with torch.autocast('cpu', torch.bfloat16), torch.set_grad_enabled(training):
        model(torch.randn(2, 3, 96, 96))
    assert len(seen) == 8 and all(bias.dtype == torch.bfloat16 for bias in seen)
    assert all(a is b for a, b in zip(seen[::2], seen[1::2], strict=True))


def test_gradients_reach_the_tables_from_images_of_other_sizes():
    model = CMT(SMALL)
    sum(out.square().mean() for out in model(torch.randn(2, 3, 96, 96))).backward()
    for stage in model.stages:
        assert stage.position_bias.table.grad.abs().sum() > 0


def test_other_images_are_padded_to_multiples_of_32():
    model = random(CMT(SMALL))
    x = torch.randn(2, 3, 40, 75, dtype=torch.float64)
    for out, whole, stride in zip(model(x), model(F.pad(x, (0, 21, 0, 24))), model.strides, strict=True):
        torch.testing.assert_close(out, whole[:, :, :-(-40 // stride), :-(-75 // stride)], rtol=0, atol=0)


@pytest.mark.parametrize('resampling', ['table', 'grid'])
def test_checkpoints_of_another_image_size_are_resampled(resampling, tmp_path):
    small = CMT(SMALL, image_size=(64, 64), resampling=resampling)
    torch.save(small.state_dict(), tmp_path / 'weights.pth')
    model = CMT(SMALL, image_size=(96, 128), resampling=resampling,
                init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    fit = match(model, small.state_dict())
    assert fit.complete and fit.resampled == [f'stages.{index}.position_bias.table' for index in range(4)]
    model.init_weights()
    small.eval(), model.eval()
    x = torch.randn(1, 3, 96, 128)
    for a, b in zip(small(x), model(x), strict=True):  # whether they are resampled now or then
        torch.testing.assert_close(a, b)


def test_checkpoints_of_other_heads_are_refused(tmp_path):
    torch.save(CMT(SMALL, num_heads=(1, 2, 2, 8)).state_dict(), tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError, match=r'stages.2.position_bias.table: \(2, 24, 6\) instead of \(4, 24, 6\)'):
        CMT(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))).init_weights()


def test_published_classifiers_load_as_they_are_and_converted(tmp_path):
    """With their heads, whose state is no backbone's, and without norms of the maps, which begin as they are drawn."""
    variant = golden.load('cmt')['variants']['ti']
    state_dict = {name: tensor.float() for name, tensor in golden.state_dict(variant).items()}
    assert {'_fc.weight', '_bn.running_mean', '_bn.num_batches_tracked', 'head.bias'} < state_dict.keys()
    torch.save(dict(model=state_dict), tmp_path / 'published.pth')
    convert(str(tmp_path / 'published.pth'), str(tmp_path / 'converted.pth'), 'cmt')
    for name in ('published.pth', 'converted.pth'):
        for size in (160, 96):
            model = CMT('ti', map_norms=(0, 1, 2, 3), image_size=(size, size),
                        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / name)))
            model.init_weights()
            assert torch.equal(model.stages[2].blocks[9].ffn.fc2.norm.running_var,
                               state_dict['blocks_c.9.mlp.proj_bn.running_var'])
            assert torch.equal(model.stages[0].position_bias.table, state_dict['relative_pos_a']) == (size == 160)
            assert all((stage.norm.weight == 1).all() for stage in model.stages)
    with pytest.raises(CheckpointError, match='cmt ti is another than in our ImageNet config'):
        convert(str(tmp_path / 'published.pth'), str(tmp_path / 'head.pth'), 'cmt', with_head=True)
    del state_dict['blocks_a.0.attn.sr.1.running_mean']
    torch.save(state_dict, tmp_path / 'cut.pth')
    with pytest.raises(CheckpointError, match='1 missing .stages.0.blocks.0.attn.norm.running_mean'):
        CMT('ti', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'cut.pth'))).init_weights()


def test_maps_have_norms_where_they_are_named():
    model = CMT(SMALL, map_norms=(0, 2)).eval()
    assert [stage.norm is not None for stage in model.stages] == [True, False, True, False]
    means = [out.mean(1).abs().max() for out in model(torch.randn(1, 3, 64, 64))]
    assert means[0] < 1e-5 < means[1] and means[2] < 1e-5 < means[3]


def test_activated_maps_are_not_kept():
    """Of GELU, norm and convolution a training keeps the input, which the values before GELU are, and that alone."""
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    torch.manual_seed(0)
    part = Activated(LocalConv(8), recompute=True)
    plain = copy.deepcopy(part)
    kept, results = [], []
    for module, compute in ((part, partial(run, part)), (plain, plain)):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            out = compute(x)
        gradients = torch.autograd.grad(out.square().sum(), (x, *module.parameters()))
        kept.append(sum(size for size in sizes if size >= x.numel()))
        results.append([out, *gradients, *module.buffers()])
    assert kept[0] == x.numel() < kept[1] / 2
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)  # statistics and the count of batches too


def test_synchronised_norms_take_the_places_of_all_batch_norms():
    model = CMT(SMALL)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(names) == 3 + 3 * 6 + 5
    synchronised = convert_sync_batchnorm(copy.deepcopy(model), 'torch')
    assert all(isinstance(synchronised.get_submodule(name), nn.SyncBatchNorm) for name in names)
    assert synchronised.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3, 64, 64)
    for a, b in zip(synchronised.eval()(x), model.eval()(x), strict=True):
        torch.testing.assert_close(a, b)


def test_fusing_convolutions_with_norms_changes_nothing():
    """MMCV takes each batch norm for that of the convolution registered before it; a GELU lies between most of them here."""
    model = random(CMT(SMALL))
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    before = model(x)
    fused = fuse_conv_bn(copy.deepcopy(model))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules()) == 3 + 3 * 6  # but those of reduced maps
    for a, b in zip(fused(x), before, strict=True):
        torch.testing.assert_close(a, b)


def test_drop_path_grows_over_all_blocks():
    with torch.device('meta'):
        model = CMT('ti', drop_path_rate=0.3)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.3 * index / 15 for index in range(16)])


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = CMT('ti', map_norms=(0, 1, 2, 3))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.)
    model.init_weights()
    linear = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Linear)])
    assert linear.std().item() == pytest.approx(0.02, rel=0.01)
    for stage in model.stages:
        assert stage.position_bias.table.std().item() == pytest.approx(1, rel=0.05)
    block = model.stages[2].blocks[0]
    for layer, fan_out in ((block.lpu, 9 * 184), (block.attn.reduction, 4 * 184), (block.ffn.local.conv, 9 * 662),
                           (block.ffn.fc1, 662), (block.ffn.fc2.conv, 184), (model.stages[0].patch_embed.conv, 9 * 16),
                           (model.stages[1].patch_embed.proj, 4 * 92)):
        assert layer.weight.std().item() == pytest.approx((2 / fan_out)**0.5, rel=0.1)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith('bias'))
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d)))


def test_tables_have_no_decay_in_layer_wise_fine_tuning():
    assert {f'stages.{index}.position_bias.table' for index in range(4)} <= CMT(SMALL).no_weight_decay()


@pytest.mark.parametrize('size', [224, (224, ), (224, 200), (0, 32)])
def test_refuses_image_sizes_that_have_no_table(size):
    with pytest.raises(ValueError, match="'image_size'. of CMT must be height and width in pixels, multiples of 32, got"):
        CMT('ti', image_size=size)
