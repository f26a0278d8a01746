"""What is CSWin's own; tests/backbones/test_contract.py holds what every backbone must do."""
import re

import pytest
import torch
import torch.nn.functional as F

from mmsimvit import CSWin
from mmsimvit.layers import ConvEmbed, CrossShapedAttention
from mmsimvit.weights import convert_head, convert_state_dict, match
from tests import golden
from tests.backbones.table import BACKBONES


def stripes(length, width):
    """The stripes of so many rows, padded on both sides as published: for each, the rows of the map, or None for padding."""
    missing = -length % width
    rows = [None] * (missing // 2) + list(range(length)) + [None] * (missing - missing // 2)
    return [rows[first:first + width] for first in range(0, len(rows), width)]


def slow_attention(attention, x):
    """Stripe by stripe, head by head, and LePE pixel by pixel, of one image ``(H, W, C)``."""
    height, width, dims = x.shape
    out = torch.zeros_like(x)
    query, key, value = F.linear(x, attention.qkv.weight, attention.qkv.bias).split(dims, -1)
    branches, size = len(attention.lepe), attention.stripe_width
    head = dims // branches // attention.num_heads
    for branch in range(branches):
        if size is None:
            parts = [(range(height), range(width))]
        elif branch == 0:
            parts = [(range(height), columns) for columns in stripes(width, size)]
        else:
            parts = [(rows, range(width)) for rows in stripes(height, size)]
        weight, bias = attention.lepe[branch].weight[:, 0], attention.lepe[branch].bias
        for rows, columns in parts:
            places = [(row, column) for row in rows for column in columns]
            for number in range(attention.num_heads):
                first = branch * dims // branches + number * head
                own = slice(first, first + head)
                lepe = slice(number * head, (number + 1) * head)
                zero = x.new_zeros(head)
                keys, values = (torch.stack([zero if None in place else part[place][own] for place in places])
                                for part in (key, value))
                stripe = values.view(len(rows), len(columns), head)
                for index, place in enumerate(places):
                    if None in place:
                        continue
                    weights = (keys @ query[place][own] / head**0.5).softmax(0)
                    down, right = divmod(index, len(columns))
                    near = [stripe[y, z] * weight[lepe, y - down + 1, z - right + 1]
                            for y in range(max(down - 1, 0), min(down + 2, len(rows)))
                            for z in range(max(right - 1, 0), min(right + 2, len(columns)))]
                    out[place][own] = weights @ values + sum(near) + bias[lepe]
    return F.linear(out, attention.proj.weight, attention.proj.bias)


@pytest.mark.parametrize('shape', [(1, 1), (2, 7), (5, 4), (8, 6)], ids=str)
@pytest.mark.parametrize('stripe_width', [1, 2, 3, 7, None])
def test_attention_in_words(stripe_width, shape):
    """On maps that stripes do not divide, too: padding lies on both sides, and has its share of the softmax."""
    attention = CrossShapedAttention(8, 4, stripe_width).double()
    x = torch.randn(2, *shape, 8).double()
    torch.testing.assert_close(attention(x), torch.stack([slow_attention(attention, image) for image in x]))


@pytest.mark.parametrize('branch', [0, 1], ids=['vertical', 'horizontal'])
def test_lepe_stays_inside_its_stripe(branch):
    """With equal logits, what differs inside a stripe is LePE: it changes no pixel of the stripes beside."""
    attention = CrossShapedAttention(4, 2, 2)
    for p in attention.parameters():
        torch.nn.init.zeros_(p)
    torch.nn.init.eye_(attention.proj.weight)
    attention.qkv.weight.data[8:] = torch.eye(4)
    torch.nn.init.ones_(attention.lepe[branch].weight)
    x = torch.zeros(1, 6, 6, 4)
    x[0, 3, 3] = 1.
    own = slice(2 * branch, 2 * branch + 2)
    seen = attention(x)[0][..., own].sum(-1)
    if branch:
        seen = seen.t()  # stripes are columns now
    assert seen[:, :2].eq(0).all() and seen[:, 4:].eq(0).all()
    assert (seen[2:5, 2:4] > 2).all() and seen[:, 2:4].sum().item() == pytest.approx(2 * 6 + 2)


def test_of_lepe_in_stage_1_only_the_middle_has_an_effect():
    attention = CrossShapedAttention(4, 2, 1)
    attention(torch.randn(1, 5, 6, 4)).square().sum().backward()
    vertical, horizontal = (conv.weight.grad.abs().sum((0, 1)) for conv in attention.lepe)
    assert vertical[:, 1].all() and not vertical[:, 0].any() and not vertical[:, 2].any()
    assert horizontal[1].all() and not horizontal[0].any() and not horizontal[2].any()


@pytest.mark.parametrize('size', [(3, 4), (5, 6), (31, 33), (34, 35), (64, 90), (223, 801)], ids=str)
def test_the_stem_rounds_down(size):
    rows, columns = ((pixels - 3) // 4 + 1 for pixels in size)
    for out in BACKBONES['CSWin'].build().eval()(torch.randn(1, 3, *size)):
        assert out.shape[2:] == (rows, columns)
        rows, columns = (rows + 1) // 2, (columns + 1) // 2


@pytest.mark.parametrize('size', [(1, 1), (2, 9), (9, 2), (1, 40)], ids=str)
def test_images_below_three_pixels_are_padded_to_them(size):
    model = BACKBONES['CSWin'].build().double().eval()
    x = torch.randn(1, 3, *size).double()
    padded = F.pad(x, (0, max(3 - size[1], 0), 0, max(3 - size[0], 0)))
    for a, b in zip(model(x), model(padded), strict=True):
        assert torch.equal(a, b)


def test_the_stem_pads_by_two():
    """The first pixel of the first map looks at five pixels of the image in each direction."""
    embed = ConvEmbed(1, 8, 7, 4, 2)
    x = torch.randn(1, 1, 20, 20, requires_grad=True)
    embed(x)[0, 0, 0].square().sum().backward()
    seen = x.grad[0, 0] != 0
    assert seen[:5, :5].all() and seen.sum() == 25


def test_stripe_widths_of_384_pixels_are_an_override():
    model = CSWin('tiny', stripe_widths=(1, 2, 12), depths=(1, 1, 1, 1))
    assert [stage.blocks[0].attn.stripe_width for stage in model.stages] == [1, 2, 12, None]
    assert CSWin('tiny', stripe_widths=(1, 2, 12)).state_dict().keys() == CSWin('tiny').state_dict().keys()


@pytest.mark.parametrize(('overrides', 'millions'), [
    ({}, 146), (dict(embed_dims=(144, 288, 576, 1152), num_heads=(6, 12, 24, 48)), 173)], ids=['code', 'paper'])
def test_large_has_the_widths_of_its_heads(overrides, millions):
    """In the published code, stage 4 has as many heads as stage 3, and no more channels. The published 173 M parameters are
    those of twice as many, with a classifier of 1000 classes."""
    with torch.device('meta'):
        model = CSWin('large', **overrides)
    assert model.out_channels[2:] == ((576, 1152) if overrides else (576, 576))
    maps_alone = sum(p.numel() for stage in model.stages[:3] for p in stage.norm.parameters())
    head = 1000 * (model.out_channels[-1] + 1)
    assert round((sum(p.numel() for p in model.parameters()) - maps_alone + head) / 1e6) == millions


@pytest.mark.parametrize(('num_heads', 'is_even'), [((2, 4, 8, 15), True), ((1, 4, 8, 16), False), ((2, 4, 7, 16), False)])
def test_heads_are_halved_in_all_stages_but_the_last(num_heads, is_even):
    arch = dict(CSWin.arch_zoo['tiny'], embed_dims=tuple(2 * heads for heads in num_heads), depths=(1, 1, 1, 1))
    if is_even:
        assert CSWin(arch, num_heads=num_heads).stages[3].blocks[0].attn.num_heads == 15
    else:
        with pytest.raises(ValueError, match=r'num_heads of stages 1 to 3 must be even.*got \('):
            CSWin(arch, num_heads=num_heads)


SHALLOW = dict(depths=(1, 1, 1, 1))


@pytest.fixture(scope='module')
def published():
    """The beginning of each stage of a published segmentor's backbone."""
    state_dict = golden.state_dict(golden.load('cswin')['variants']['tiny'])
    return {name: tensor.float() for name, tensor in state_dict.items() if not re.match(r'stage\d\.[1-9]', name)}


def test_a_published_segmentor_loads(published, tmp_path):
    weights = {f'backbone.{name}': tensor for name, tensor in published.items()}
    torch.save(dict(state_dict={**weights, 'decode_head.conv_seg.weight': torch.zeros(1)}), tmp_path / 'weights.pth')
    model = CSWin('tiny', **SHALLOW, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    model.init_weights()
    assert torch.equal(model.stages[2].patch_embed.proj.weight, published['merge2.conv.weight'])
    assert torch.equal(model.stages[0].norm.weight, published['norm1.weight'])
    assert torch.equal(model.stages[1].blocks[0].attn.lepe[1].bias, published['stage2.0.attns.1.get_v.bias'])


def test_a_published_classifier_has_the_norm_of_the_last_map_alone(published, tmp_path):
    classifier = {name: tensor for name, tensor in published.items() if not name.startswith('norm')}
    classifier |= {'norm.weight': torch.full((512, ), 0.5), 'norm.bias': torch.zeros(512),
                   'head.weight': torch.ones(1000, 512), 'head.bias': torch.zeros(1000)}
    torch.save(dict(state_dict_ema=classifier), tmp_path / 'weights.pth')
    model = CSWin('tiny', **SHALLOW, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    assert match(model, convert_state_dict('cswin', classifier)).added == [
        f'stages.{index}.norm.{part}' for index in range(3) for part in ('weight', 'bias')]
    model.init_weights()
    assert torch.equal(model.stages[3].blocks[0].attn.qkv.weight, published['stage4.0.qkv.weight'])
    assert (model.stages[3].norm.weight == 0.5).all() and (model.stages[2].norm.weight == 1).all()
    assert convert_head('cswin', 'tiny', classifier)['head.fc.weight'].all()


def test_projections_have_biases_and_nothing_is_stored_for_masks():
    model = BACKBONES['CSWin'].build()
    assert all(m.bias is not None for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert not list(model.buffers())


def test_initialisation_is_the_published():
    model = CSWin('tiny')
    model.init_weights()
    linear = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Linear)])
    assert linear.std().item() == pytest.approx(0.02, rel=0.01)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert not module.bias.any()
        if isinstance(module, torch.nn.Conv2d):  # torch's own: uniform up to 1 / sqrt(fan-in), weights and biases
            bound = module.weight[0].numel()**-0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound and 0 < module.bias.abs().max() <= bound
        if isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any() and module.eps == 1e-5
