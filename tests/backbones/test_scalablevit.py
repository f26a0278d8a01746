"""What is ScalableViT's own; tests/backbones/test_contract.py holds what every backbone must do."""
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmsimvit import ScalableViT, convert_state_dict
from mmsimvit.backbones.scalablevit import Reduction, ScalableAttention, WindowAttention, attend, mask_padding
from mmsimvit.weights import convert_head
from tests import golden
from tests.conftest import ROOT

SMALL = golden.load('scalablevit')['small']['ScalableViT']['arch']


def plain_attention(query, key, value, num_heads, scale):
    heads = [((q @ k.transpose(-2, -1) * scale).softmax(-1) @ v)
             for q, k, v in zip(*(x.chunk(num_heads, -1) for x in (query, key, value)))]
    return torch.cat(heads, -1)


def test_the_norm_of_reduced_tokens_has_another_eps():
    eps = {name: module.eps for name, module in ScalableViT('s').named_modules() if isinstance(module, nn.LayerNorm)}
    assert {value for name, value in eps.items() if '.reduction.' in name} == {1e-5}
    assert {value for name, value in eps.items() if '.reduction.' not in name} == {1e-6}


@pytest.mark.parametrize(('arch', 'query_dims'), [
    ('s', (80, 160, 320, 512)), ('b', (192, 240, 480, 768)), ('l', (32, 128, 512, 1024))])
def test_queries_and_keys_are_scaled_and_values_are_not(arch, query_dims):
    model = ScalableViT(arch)
    assert tuple(stage.blocks[1].attn.q.out_features for stage in model.stages) == query_dims
    for stage, dims in zip(model.stages[:3], model.out_channels):
        attention = stage.blocks[1].attn
        assert attention.k.out_features == attention.k.in_features == attention.v.in_features == attention.q.out_features
        assert attention.v.out_features == dims


@pytest.mark.parametrize('query_width', [2, 3, 5])
def test_heads_of_unequal_width_attend_as_others(query_width):
    query, key, value = (torch.randn(2, tokens, 4 * width, dtype=torch.float64, requires_grad=True)
                         for tokens, width in ((7, query_width), (5, query_width), (5, 3)))
    results = []
    for function in (attend, plain_attention):
        out = function(query, key, value, 4, 0.3)
        results.append([out, *torch.autograd.grad(out.square().sum(), (query, key, value))])
    torch.testing.assert_close(*results)


def test_without_reduction_the_ratio_is_in_the_scale_alone():
    attention = ScalableAttention(32, 2, 1, 1.25).double()
    x = torch.randn(1, 3, 5, 32, dtype=torch.float64)
    key, value = attention.kv(x).flatten(1, 2).chunk(2, -1)
    expected = attention.proj(plain_attention(attention.q(x).flatten(1, 2), key, value, 2, 20**-0.5))
    torch.testing.assert_close(attention(x).flatten(1, 2), expected)


def test_reduced_tokens_at_the_border_see_zeros():
    reduction = Reduction(4, 6, 4)
    x = torch.randn(2, 5, 8, 4)
    padded = nn.functional.pad(x, (0, 0, 0, 0, 0, 3))
    assert reduction(x).shape == (2, 2, 2, 6)
    torch.testing.assert_close(reduction(x), reduction(padded))


@pytest.mark.parametrize('size', [(8, 12), (5, 9), (1, 1), (3, 4)])
def test_windows_attend_to_pixels_alone(size):
    """Each window, cut off at the border of the map, on its own."""
    attention = WindowAttention(8, 2, 4).double()
    nn.init.zeros_(attention.lim.weight)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    out = attention(x, mask_padding(x, 4))
    for top in range(0, size[0], 4):
        for left in range(0, size[1], 4):
            window = attention.qkv(x[:, top:top + 4, left:left + 4].flatten(1, 2))
            expected = attention.proj(plain_attention(*window.chunk(3, -1), 2, 0.5) + attention.lim.bias)
            torch.testing.assert_close(out[:, top:top + 4, left:left + 4].flatten(1, 2), expected)


def test_no_mask_where_windows_are_whole():
    assert mask_padding(torch.randn(1, 14, 21, 8), 7) is None
    mask = mask_padding(torch.randn(2, 14, 22, 8), 7)
    assert mask.shape == (2 * 2 * 4, 1, 1, 49)
    assert mask.sum((1, 2, 3)).tolist() == [49, 49, 49, 7, 49, 49, 49, 7] * 2


def test_values_interact_across_windows_and_not_beyond_the_map():
    """The convolution is added to what attention gives, without the values themselves; it sees the unpadded map."""
    attention = WindowAttention(8, 2, 4).double()
    nn.init.eye_(attention.proj.weight)
    nn.init.zeros_(attention.proj.bias)
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    whole = attention(x, mask_padding(x, 4))
    value = nn.functional.linear(x, attention.qkv.weight[16:], attention.qkv.bias[16:]).permute(0, 3, 1, 2)
    nn.init.zeros_(attention.lim.weight)
    nn.init.zeros_(attention.lim.bias)
    without = attention(x, mask_padding(x, 4))
    lim = WindowAttention(8, 2, 4).double().lim
    attention.lim = lim
    torch.testing.assert_close(attention(x, mask_padding(x, 4)) - without, lim(value).permute(0, 2, 3, 1))
    assert not torch.allclose(whole, without)


def test_position_follows_the_first_block_alone_and_keeps_its_input():
    model = ScalableViT('s', depths=(2, 2, 3, 2))
    assert [[hasattr(block, 'peg') for block in stage.blocks] for stage in model.stages] == [
        [True, False], [True, False], [True, False, False], [True, False]]
    block = model.stages[0].blocks[0].eval()
    x = torch.randn(1, 7, 7, 64)
    found = block(x)
    nn.init.zeros_(block.peg.weight)
    nn.init.zeros_(block.peg.bias)
    before = block(x)
    peg = ScalableViT('s', out_indices=(0, )).stages[0].blocks[0].peg
    block.peg = peg
    torch.testing.assert_close(block(x), before + peg(before.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    assert not torch.allclose(found, before)


def test_blocks_take_turns():
    model = ScalableViT('s')
    kinds = [type(block.attn) for block in model.stages[2].blocks]
    assert kinds == [WindowAttention, ScalableAttention] * 10


def test_maps_have_norms_on_request_alone():
    published = golden.load('scalablevit')['variants']['s_small']
    case = published['cases'][0]
    options = dict(depths=(2, 2, 4, 2), window_sizes=(4, 4, 2, 2))
    for final_norm, index in ((False, 3), (True, 4)):
        model = ScalableViT('s', final_norm=final_norm, **options).double().eval()
        model.load_state_dict(ScalableViT.published.convert(golden.state_dict(published)))  # in both cases with the norm
        out = model(golden.image(case['input']))[3]
        assert golden.error(out, case['outputs'][index]) < 1e-9


def test_published_classifiers_give_their_scores():
    """The head with its hidden layer, through the converter and the ImageNet config."""
    published = golden.state_dict(golden.load('scalablevit')['variants']['s_small'])
    published.update({name: golden.parameter(name, shape) for name, shape in {
        'head.0.weight': [4096, 512], 'head.0.bias': [4096], 'head.1.weight': [4096], 'head.1.bias': [4096],
        'head.3.weight': [1000, 4096], 'head.3.bias': [1000]}.items()})
    cfg = Config.fromfile(ROOT / 'configs/scalablevit/scalablevit_s_imagenet.py')
    cfg.model.backbone.update(depths=(2, 2, 4, 2), window_sizes=(4, 4, 2, 2))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).double().eval()
    backbone = {f'backbone.{name}': tensor for name, tensor in convert_state_dict('scalablevit', published).items()}
    model.load_state_dict({**backbone, **convert_head('scalablevit', 's', published)})
    image = golden.image([1, 3, 64, 64])
    head = nn.Sequential(nn.Linear(512, 4096), nn.LayerNorm(4096, eps=1e-6), nn.GELU(), nn.Linear(4096, 1000)).double()
    head.load_state_dict({name[5:]: tensor for name, tensor in published.items() if name.startswith('head.')})
    torch.testing.assert_close(model(image, mode='tensor'), head(model.backbone(image)[0].mean((2, 3))))


@pytest.mark.parametrize(('arch', 'millions'), [('s', 32.00), ('b', 81.88), ('l', 109.29)])
def test_parameters_of_classifiers_are_those_of_the_published_code(arch, millions):
    """Not those of the publication, which has 32.4, 81.9 and 104.9."""
    with torch.device('meta'):
        model = ScalableViT(arch, final_norm=True)
        head = nn.Sequential(nn.Linear(model.out_channels[-1], 4096), nn.LayerNorm(4096), nn.Linear(4096, 1000))
    assert sum(p.numel() for p in (*model.parameters(), *head.parameters())) / 1e6 == pytest.approx(millions, abs=5e-3)


def test_initialisation_is_the_published():
    model = ScalableViT('s', depths=(2, 2, 4, 2))
    model.init_weights()
    linear = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Linear)])
    assert linear.std().item() == pytest.approx(0.02, rel=0.01)
    block = model.stages[2].blocks[0]
    for conv in (block.peg, block.attn.lim):
        assert conv.weight.std().item() == pytest.approx((2 / 9)**0.5, rel=0.05)
    reduction = model.stages[0].blocks[1].attn.reduction
    assert reduction.dwconv.weight.std().item() == pytest.approx((2 / 64)**0.5, rel=0.05)
    assert reduction.pwconv.weight.std().item() == pytest.approx((2 / 80)**0.5, rel=0.05)
    assert model.stages[1].patch_embed.proj.weight.std().item() == pytest.approx((2 / (9 * 128))**0.5, rel=0.05)
    first = model.stages[0].patch_embed.proj.bias  # the one exception: see test_first_gradients of the contract
    assert first.any()
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith('bias') and p is not first)


@pytest.mark.parametrize('ratio', [0.1, 1.4])
def test_heads_share_the_channels_of_queries(ratio):
    with pytest.raises(ValueError, match=f'query_ratios times .* must be a multiple of num_heads, got {ratio}, 8 and 2'):
        ScalableViT({**SMALL, 'num_heads': (2, 2, 2, 2), 'query_ratios': (ratio, 1, 1, 1), 'depths': (2, 1, 1, 1)})
