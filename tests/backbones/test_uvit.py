"""What is UViT's own; tests/backbones/test_contract.py holds what every backbone must do."""
from itertools import groupby

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmsimvit import CheckpointError, UViT
from mmsimvit.analysis.flops import count_complexity
from mmsimvit.backbones.uvit import cut, join
from mmsimvit.layers import attention, multi_head_attention, resize
from tests.conftest import ROOT

SMALL = dict(embed_dims=18, depth=3, num_heads=3, mlp_ratio=2, patch_size=8, grid=(5, 7), windows=(4, 2, 1))


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def randomise(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def plain_forward(model, x):
    """The definition: attention over the whole map, masked to the tokens in the same rectangle."""
    parts = model.arch['windows']
    x = F.pad(x, (0, -x.shape[3] % (8 * max(parts)), 0, -x.shape[2] % (8 * max(parts))))
    table, (rows, columns) = model.pos_embed.table, model.arch['grid']
    x = F.conv2d(x, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8)
    height, width = x.shape[2:]
    grid = table[0].T.reshape(1, -1, rows, columns)
    x = (x + F.interpolate(grid, size=(height, width), mode='bilinear', align_corners=False)).flatten(2).transpose(1, 2)
    for block, s in zip(model.blocks, parts):
        window = torch.tensor([[(i // (height // s), j // (width // s)) for j in range(width)] for i in range(height)])
        window = window.flatten(0, 1)
        same = (window[:, None] == window).all(-1)
        query, key, value = block.attn.qkv(block.norm1(x)).split(x.shape[2], -1)
        heads = []
        for q, k, v in zip(*(part.chunk(3, -1) for part in (query, key, value))):
            logits = (q @ k.transpose(1, 2) * q.shape[2]**-0.5).masked_fill(~same, -torch.inf)
            heads.append(logits.softmax(-1) @ v)
        x = x + block.attn.proj(torch.cat(heads, -1))
        hidden = block.ffn.fc1(block.norm2(x))
        x = x + block.ffn.fc2(0.5 * hidden * (1 + torch.tanh((2 / torch.pi)**0.5 * (hidden + 0.044715 * hidden**3))))
    return model.norms[str(len(parts) - 1)](x).transpose(1, 2).unflatten(2, (height, width))


@pytest.mark.parametrize('size', [(64, 96), (40, 130), (1, 33)])
@pytest.mark.parametrize('windows', [(4, 2, 1), (1, 1, 2), (3, 2, 2)])
def test_is_masked_attention_over_the_map(size, windows):
    model = randomise(UViT({**SMALL, 'windows': windows})).double().eval()
    if windows[0] == 3:  # the sides must be multiples of both
        size = [-(-length // 48) * 48 for length in size]
    x = image(2, 3, *size).double()
    out, = model(x)
    expected = plain_forward(model, x)[..., :-(-size[0] // 8), :-(-size[1] // 8)]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('parts', [1, 2, 3])
def test_windows_are_rectangles_row_by_row(parts):
    x = torch.arange(2 * 6 * 12).view(2, 6 * 12, 1)
    windows = cut(x, parts, 6, 12)
    grid = x.view(2, 6, 12)
    height, width = 6 // parts, 12 // parts
    expected = [grid[b, i * height:(i + 1) * height, j * width:(j + 1) * width].flatten()
                for b in range(2) for i in range(parts) for j in range(parts)]
    assert torch.equal(windows[..., 0], torch.stack(expected))
    assert torch.equal(join(windows, parts, 6, 12), x)


def test_quarters_never_meet_in_the_encoder_but_in_plus():
    for arch, alone in (('t', True), ('t_plus', False)):
        torch.manual_seed(0)
        model = UViT(arch, embed_dims=24).double().eval()
        x = image(1, 3, 64, 96).double()
        y = x.clone()
        y[..., :32, :48] += 1
        changed = (model(x)[0] != model(y)[0]).any(1)[0]
        assert changed[:4, :6].all()
        changed[:4, :6] = False
        assert changed.any() != alone


def test_windows_are_cut_once_for_a_run_of_blocks(monkeypatch):
    seen = []
    monkeypatch.setattr('mmsimvit.backbones.uvit.cut', lambda x, parts, *size: seen.append(parts) or cut(x, parts, *size))
    with torch.no_grad():
        UViT('t_plus', embed_dims=24)(image(1, 3, 64, 64))
    assert seen == [4, 2, 1] == [parts for parts, _ in groupby(UViT.arch_zoo['t_plus']['windows'])]


def test_no_mask_and_no_weights_of_attention_are_kept(monkeypatch):
    masks = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, 'scaled_dot_product_attention',
                        lambda *args, **kwargs: masks.append(kwargs['attn_mask']) or original(*args, **kwargs))
    sizes = []
    model = UViT(SMALL)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        model(image(1, 3, 256, 256))
    assert masks == [None] * 3
    assert max(sizes) == 3 * 256 * 256  # the image; weights of 32 x 32 tokens would be 1024 * 1024 for each head


def test_heads_of_odd_widths_are_padded_for_fused_kernels():
    """With the scale of their own channels."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 11, 6 * 37).double().requires_grad_() for _ in range(3))
    expected = multi_head_attention(query, key, value, 6)
    heads = [x.unflatten(-1, (6, -1)).transpose(1, 2) for x in (query, key, value)]
    *padded, scale = attention.pad_heads(*heads, None)
    assert {x.shape for x in padded} == {(2, 6, 11, 40)} and attention.pad_heads(*heads, 0.5)[3] == 0.5
    out = F.scaled_dot_product_attention(*padded, scale=scale)
    assert not out[..., 37:].any()
    torch.testing.assert_close(out[..., :37].transpose(1, 2).flatten(2), expected)


def test_positions_of_another_grid_are_interpolated():
    model = UViT(SMALL)
    table = model.pos_embed.table.detach().view(5, 7, 18)
    x = torch.zeros(1, 10, 7, 18)
    out = model.pos_embed(x)[0].detach()
    for i, (low, high, share) in {0: (0, 0, 0), 1: (0, 1, 0.25), 2: (0, 1, 0.75), 9: (4, 4, 0)}.items():  # half-pixel centres
        torch.testing.assert_close(out[i], (1 - share) * table[low] + share * table[high])
    assert torch.equal(model.pos_embed(torch.zeros(1, 5, 7, 18))[0], table)


def test_checkpoints_of_pretraining_are_resized(tmp_path):
    """From patches of 16 pixels and 14 x 14 positions, as ours are trained on ImageNet."""
    torch.manual_seed(0)
    classifier = UViT({**SMALL, 'patch_size': 16, 'grid': (14, 14), 'windows': (1, 1, 1)})
    assert classifier.strides == (16, ) and classifier(image(1, 3, 224, 224))[0].shape == (1, 18, 14, 14)
    torch.save(dict(state_dict={f'backbone.{name}': tensor for name, tensor in classifier.state_dict().items()}),
               tmp_path / 'classifier.pth')
    model = UViT(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'classifier.pth')))
    model.init_weights()
    state = classifier.state_dict()
    table = state['pos_embed.table'].view(14, 14, 18).permute(2, 0, 1)
    expected = F.interpolate(table[None], size=(5, 7), mode='bilinear')[0].flatten(1).T
    torch.testing.assert_close(model.pos_embed.table[0], expected)
    kernel = state['patch_embed.proj.weight']  # halved, bilinear takes the mean of each 2 x 2
    expected = kernel.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean((3, 5))
    torch.testing.assert_close(model.patch_embed.proj.weight, expected)
    assert torch.equal(model.blocks[1].ffn.fc1.weight, state['blocks.1.ffn.fc1.weight'])


def test_tables_that_are_no_square_must_fit(tmp_path):
    torch.save(UViT({**SMALL, 'grid': (3, 4)}).state_dict(), tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=r'pos_embed.table: \(1, 12, 18\) instead of \(1, 35, 18\)'):
        UViT(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'other.pth'))).init_weights()
    model = UViT(SMALL)
    model.load_state_dict(UViT(SMALL).state_dict())  # of its own grid, which is no square either


def test_nothing_was_published(tmp_path):
    with pytest.raises(CheckpointError, match=r'no weights of b_plus were published \(https://\S+ has none\); a checkpoint'):
        UViT('b_plus', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'none.pth'))).init_weights()


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(('arch', 'dims', 'dense', 'classifier'), [
    ('t', 222, 13_525_350, 10_784_094), ('s', 288, 21_652_128, 18_095_904), ('b', 384, 36_832_128, 32_090_496)])
def test_parameters_are_those_derived_from_the_paper(arch, dims, dense, classifier):
    """Of both window settings: 18 blocks, patches of 8 x 8, biases everywhere, a vector for each position, the last norm."""
    assert dense == 18 * (12 * dims**2 + 13 * dims) + 193 * dims + 112 * 112 * dims + 2 * dims
    with torch.device('meta'):
        assert count(UViT(arch)) == count(UViT(f'{arch}_plus')) == dense
        assert count(UViT(arch, grid=(14, 14))) == classifier


@pytest.mark.parametrize(('dims', 'millions'), [(192, 14.2), (240, 22.2), (342, 45.1), (1280, 629.7)])
def test_blocks_of_the_models_for_pascal_voc(dims, millions):
    """Depth 32. The published totals have unknown heads; that of the widest, 529.9, is not what depth 32 gives."""
    with torch.device('meta'):
        model = UViT('t', embed_dims=dims, num_heads=2, depth=32, windows=(2, ) * 28 + (1, ) * 4, grid=(64, 64))
    assert count(model.blocks) == 32 * (12 * dims**2 + 13 * dims)
    assert count(model.blocks) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(('arch', 'millions'), [('t', 51.0), ('s', 59.2), ('b', 74.4)])
def test_parameters_of_the_published_detector(arch, millions):
    """But for the second mask head, which MMDetection's cascade has; those of the detector are 37.4 M."""
    cfg = Config.fromfile(ROOT / f'configs/uvit/cascadercnn_uvit_{arch}_coco_896.py').model
    cfg.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = MODELS.build(cfg)
    total = count(model) - count(model.roi_head.mask_head[1])
    assert total / 1e6 == pytest.approx(millions, abs=0.12)
    dims = model.backbone.arch['embed_dims']
    assert (total - count(model.backbone) - 256 * dims) / 1e6 == pytest.approx(37.4, abs=0.05)


WINDOWS_OF_B = {
    '4 x 1/16, 4 x 1/8, 4 x 1/4, 4 x 1/2, 2 x 1': ((16, ) * 4 + (8, ) * 4 + (4, ) * 4 + (2, ) * 4 + (1, ) * 2, 1154.3),
    '9 x 1/8, 4 x 1/4, 3 x 1/2, 2 x 1': ((8, ) * 9 + (4, ) * 4 + (2, ) * 3 + (1, ) * 2, 1131.2),
    '6 x 1/4, 12 x 1/2': ((4, ) * 6 + (2, ) * 12, 1160.1),
}


@pytest.mark.parametrize(('arguments', 'published'), [
    *((dict(arch=arch), published) for arch, published in (
        ('t', 801.4), ('s', 986.8), ('b', 1298.7), ('t_plus', 720.2), ('s_plus', 882.2), ('b_plus', 1160.1))),
    *((dict(arch='b', windows=windows), published) for windows, published in WINDOWS_OF_B.values())])
def test_operations_are_the_published_without_those_of_the_detector(arguments, published):
    """Of 896 x 896 pixels. The detector is the same in all, and so is what remains: 350 to 354 G multiply-accumulates."""
    with torch.device('meta'):
        model = UViT(**arguments)
    assert 350 < published - count_complexity(model, (896, 896)).total.macs / 1e9 < 354.5


@pytest.mark.parametrize(('arch', 'derived', 'published'), [('t', 2.43, 2.5), ('s', 3.95, 4.0), ('b', 6.83, 6.9)])
def test_operations_of_classifiers_fit_attention_over_the_map(arch, derived, published):
    macs = []
    for parts in (1, 2):
        with torch.device('meta'):
            model = UViT(arch, patch_size=16, grid=(14, 14), windows=(parts, ) * 18)
        macs.append(count_complexity(model, (224, 224)).total.macs / 1e9)
    assert macs[0] == pytest.approx(derived, abs=0.006)
    assert macs[1] < macs[0] < published + 0.05


def test_patches_are_padded_to_whole_windows():
    for arch, multiple in (('t', 16), ('t_plus', 32)):
        torch.manual_seed(0)
        model = UViT(arch, embed_dims=24).double().eval()
        x = image(1, 3, 50, 70).double()
        padded = F.pad(x, (0, -70 % multiple, 0, -50 % multiple))
        assert torch.equal(model(x)[0], model(padded)[0][..., :7, :9]) and model(x)[0].shape == (1, 24, 7, 9)


def test_finds_its_variant_by_windows():
    with torch.device('meta'):
        assert UViT('b').find_variant() == 'b'
        assert UViT('b_plus').find_variant() == 'b_plus'
        assert UViT('b', windows=[4] * 14 + [2, 2, 1, 1]).find_variant() == 'b_plus'


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(windows=(2, 1)), r'windows must be one for each of the 3 blocks \(depth\), got 2: \(2, 1\)'),
    (dict(windows=(2, 0, 1)), r"arch\['windows'\] of UViT must be positive whole numbers, one for each block, got \(2, 0, 1\)"),
    (dict(grid=14), r"arch\['grid'\] of UViT must be 2 positive whole numbers, got 14"),
    (dict(out_type='cls_token'), "out_type of UViT must be featmap, got 'cls_token'"),
])
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UViT(SMALL, **arguments)


def test_initialisation_is_the_published_encoders():
    torch.manual_seed(0)
    model = UViT('t')
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.)
    model.init_weights()
    assert model.pos_embed.table.std().item() == pytest.approx(222**-0.5, rel=0.01)
    kernels = model.patch_embed.proj
    assert kernels.weight.std().item() == pytest.approx(192**-0.5, rel=0.02) and not kernels.bias.any()
    assert kernels.weight.abs().max() < 2.3 * 192**-0.5
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any() and module.eps == 1e-6
        elif isinstance(module, torch.nn.Linear):
            fan_in, fan_out = module.in_features, 222 if name.endswith('qkv') else module.out_features
            bound = (6 / (fan_in + fan_out))**0.5
            assert 0.99 * bound < module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
            assert module.bias.abs().max() < 1e-5 and bool(module.bias.any()) == ('.ffn.' in name)


def test_drop_path_is_drawn_for_each_window_and_rescaled():
    torch.manual_seed(0)
    model = UViT(SMALL, windows=(2, 2, 2), drop_path_rate=0.5)
    block = model.blocks[2]
    for parameter in block.ffn.parameters():
        parameter.data.zero_()
    x = image(64, 4, 18)
    ratio = (block(x) - x) / block.attn(block.norm1(x))
    kept = ratio.flatten(1).mean(1).round()
    assert set(kept.tolist()) == {0., 2.}
    torch.testing.assert_close(ratio, kept[:, None, None].expand_as(ratio), rtol=1e-3, atol=1e-3)


def test_resizing_has_half_pixel_centres_and_no_antialiasing():
    x = torch.arange(4.).view(1, 1, 1, 4)
    torch.testing.assert_close(resize(x, (1, 2)), torch.tensor([[[[0.5, 2.5]]]]))
    torch.testing.assert_close(resize(torch.arange(8.).view(1, 1, 1, 8), (1, 2)), torch.tensor([[[[1.5, 5.5]]]]))
