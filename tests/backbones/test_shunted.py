"""What is Shunted Transformer's own; tests/backbones/test_contract.py holds what every backbone must do."""
from math import sqrt

import pytest
import torch
import torch.nn.functional as F

from mmsimvit import Shunted
from mmsimvit.backbones.shunted import Attention, ReducedTokens, ShuntedAttention, Stem
from mmsimvit.layers import ConvFFN
from tests import golden
from tests.conftest import ROOT, load_tool


def random(module):
    """With parameters as far from their first values as trained ones."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.3)
    return module.double().eval()


def attend(query, key, value, num_heads):
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    return ((query @ key.transpose(-2, -1) / sqrt(query.shape[-1])).softmax(-1) @ value).transpose(1, 2).flatten(2)


def depthwise(conv, x):
    return F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1, groups=len(conv.weight)).permute(0, 2, 3, 1)


def test_three_epsilons():
    model = Shunted('t')
    found = {name: module.eps for name, module in model.named_modules() if hasattr(module, 'eps')}
    inner = {name for name in found if '.patch_embed.' in name or '.attn.' in name}
    assert {found[name] for name in inner} == {1e-5}
    assert {found[name] for name in found.keys() - inner} == {1e-6}
    assert 'stages.0.patch_embed.conv.1' in inner and 'stages.0.blocks.0.attn.tokens.0.norm' in inner


def test_first_heads_are_coarse_and_the_local_term_is_in_their_values():
    attention = random(ShuntedAttention(8, 4, 4))
    x = torch.randn(2, 8, 12, 8, dtype=torch.float64)
    outs = []
    for part, (tokens, rate) in enumerate(zip(attention.tokens, (4, 2), strict=True)):
        reduced = F.conv2d(x.permute(0, 3, 1, 2), tokens.reduction.weight, tokens.reduction.bias, stride=rate)
        assert reduced.shape[2:] == (8 // rate, 12 // rate)
        reduced = F.gelu(tokens.norm(reduced.permute(0, 2, 3, 1)))  # activated before the projection
        key, value = tokens.kv(reduced).split(4, -1)
        value = value + depthwise(tokens.local_conv, value)
        query = attention.q(x).flatten(1, 2)[..., 4 * part:4 * part + 4]
        outs.append(attend(query, key.flatten(1, 2), value.flatten(1, 2), 2))
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(outs, -1)).view_as(x))


def test_full_attention_has_the_local_term_in_its_result():
    attention = random(Attention(8, 2))
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    key, value = attention.kv(x).split(8, -1)
    out = attend(attention.q(x).flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2), 2).view_as(x)
    torch.testing.assert_close(attention(x), attention.proj(out + depthwise(attention.local_conv, value)))
    assert [type(stage.blocks[0].attn) for stage in Shunted('t').stages] == [ShuntedAttention] * 3 + [Attention]


@pytest.mark.parametrize(('length', 'rate', 'count'), [(57, 8, 7), (57, 4, 14), (7, 8, 1), (1, 8, 1), (9, 2, 4)])
def test_reductions_leave_out_a_remainder_but_not_the_last_token(length, rate, count):
    tokens = random(ReducedTokens(4, rate))
    x = torch.randn(1, length, 2 * rate, 4, dtype=torch.float64)
    key, value, bias = tokens(x)
    assert key.shape == value.shape == (1, 2 * count, 2) and bias is None
    padded = F.pad(x[:, :count * rate], (0, 0, 0, 0, 0, max(rate - length, 0)))
    for a, b in zip((key, value), tokens(padded)):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize('size', [(57, 14), (3, 9), (16, 8)])
def test_tokens_of_an_exported_graph_are_the_same(size, monkeypatch):
    """It has more, which count for nothing."""
    attention = random(ShuntedAttention(8, 2, 8))
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    expected = attention(x)
    monkeypatch.setattr('mmsimvit.backbones.shunted.is_exporting', lambda: True)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize('dims', [4, 80])
def test_hidden_maps_are_added_to_what_their_convolution_gives(dims, monkeypatch):
    """Also where the FFN is computed in chunks, for which the sum is folded into the kernel."""
    ffn = random(ConvFFN(dims, 2 * dims, adds_hidden=True))
    x = torch.randn(2, 6, 5, dims, dtype=torch.float64, requires_grad=True)
    hidden = ffn.fc1(x)
    expected = ffn.fc2(F.gelu(hidden + depthwise(ffn.dwconv, hidden)))
    for size in ('WORTHWHILE_BYTES', 'QUICKLY_RECOMPUTED_BYTES'):
        for least in (1 << 40, 0):
            monkeypatch.setattr(f'mmsimvit.ops.ffn.{size}', least)
            out = ffn(x)
            torch.testing.assert_close(out, expected)
            for a, b in zip(*(torch.autograd.grad(y.square().sum(), [x, *ffn.parameters()], retain_graph=True)
                              for y in (out, expected)), strict=True):
                torch.testing.assert_close(a, b)
            with torch.no_grad():
                torch.testing.assert_close(ffn(x), expected)


@pytest.mark.parametrize(('arch', 'num_convs', 'last'), [('t', 0, 3), ('s', 1, 6), ('b', 2, 9)])
def test_stems_have_the_published_convolutions(arch, num_convs, last):
    stem = Shunted(arch, out_indices=(0, )).stages[0].patch_embed
    convs = {index: module for index, module in enumerate(stem.conv) if isinstance(module, torch.nn.Conv2d)}
    assert [conv.kernel_size[0] for conv in convs.values()] == [7, *[3] * num_convs, 2] and max(convs) == last
    assert [conv.bias is None for conv in convs.values()] == [True] * (num_convs + 1) + [False]


@pytest.mark.parametrize(('size', 'rows'), [(1, 1), (4, 1), (5, 2), (6, 2), (7, 2), (228, 57)])
def test_stems_complete_the_last_patch(size, rows):
    stem = random(Stem(3, 4, 1))
    x = torch.randn(1, 3, size, 8, dtype=torch.float64)
    assert stem(x).shape == (1, rows, 2, 4)
    features = x
    for module in list(stem.conv)[:-1]:
        features = module(features)
    out = F.conv2d(F.pad(features, (0, 0, 0, features.shape[2] % 2)), stem.conv[-1].weight, stem.conv[-1].bias, stride=2)
    torch.testing.assert_close(stem(x), stem.norm(out.permute(0, 2, 3, 1)))


def test_published_classifiers_are_loaded(tmp_path):
    """As they are, through the converter, and into a detector that needs fewer maps."""
    published = golden.state_dict(golden.load('shunted')['variants']['t'])
    published |= {'head.weight': torch.zeros(1000, 512), 'head.bias': torch.zeros(1000)}
    torch.save(dict(model=published), tmp_path / 'published.pth')
    convert = load_tool(ROOT / 'tools/convert_checkpoint.py').main
    convert([str(tmp_path / 'published.pth'), str(tmp_path / 'ours.pth'), '--system', 'shunted'])
    image, maps = golden.image([1, 3, 64, 64]).float(), golden.load('shunted')['variants']['t']['cases'][0]['outputs']
    for name in ('published.pth', 'ours.pth'):
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / name))
        model = Shunted('t', out_indices=(1, 2), init_cfg=init_cfg).eval()
        model.init_weights()
        with torch.no_grad():
            for out, expected in zip(model(image), maps[1:3], strict=True):
                assert golden.error(out, expected) < 5e-4


@pytest.mark.parametrize('with_cp', [False, True])
def test_statistics_of_the_stem_see_each_batch_once(with_cp):
    model = Shunted('s', out_indices=(0, ), with_cp=with_cp)
    model(torch.randn(2, 3, 32, 32))[0].sum().backward()
    norm = model.stages[0].patch_embed.conv[1]
    assert norm.num_batches_tracked == 1
    model = Shunted('s', out_indices=(0, ), with_cp=with_cp, frozen_stages=0).train()
    model(torch.randn(2, 3, 32, 32))[0].sum().backward()
    norm = model.stages[0].patch_embed.conv[1]
    assert norm.num_batches_tracked == 0 and norm.weight.grad is None and norm.running_mean.eq(0).all()


def test_recomputation_is_of_the_stem_too():
    """Its maps are the largest of the network."""
    kept = []
    for with_cp in (False, True):
        sizes = {}
        stage = Shunted('b', out_indices=(0, ), with_cp=with_cp).stages[0]
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.update({t.data_ptr(): t.numel()}) or t,
                                                      lambda t: t):
            stage(torch.randn(1, 3, 64, 64))
        kept.append(max(sizes.values()))
    assert kept[0] >= 32 * 32 * 64 > kept[1]


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = Shunted('t')
    model.init_weights()
    linear = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Linear)])
    assert linear.std().item() == pytest.approx(0.02, rel=0.01)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_out = module.weight.numel() // module.weight.shape[1] // module.groups
            if module.weight.numel() > 4000:
                assert module.weight.std().item() == pytest.approx(sqrt(2 / fan_out), rel=0.05)
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm2d)):
            assert module.weight.eq(1).all()
        assert getattr(module, 'bias', None) is None or not module.bias.any()


def test_drop_path_rates_are_linear_over_all_blocks():
    model = Shunted('t', drop_path_rate=0.7)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * index for index in range(8)])


@pytest.mark.parametrize(('change', 'message'), [
    (dict(reduction_rates=(8, 4, 3, 1)), r"arch\['reduction_rates'\] of Shunted must be 4 numbers.*1 or even, got \(8, 4, 3"),
    (dict(num_heads=(1, 4, 8, 16)), 'num_heads must be even there, got 1 with a rate of 8'),
    (dict(stem_convs=-1), r"arch\['stem_convs'\] of Shunted must be a whole number from 0 on, got -1"),
])
def test_refuses_bad_archs(change, message):
    with pytest.raises(ValueError, match=message):
        Shunted('t', **change)
