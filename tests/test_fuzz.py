"""Random arguments: a clear ValueError or a right answer, never a wrong answer or another error."""
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmsimvit import LIT, DWNet, GCViT, SimViT, convert_state_dict
from mmsimvit.ops import central_attention, conv_ffn_in_chunks
from mmsimvit.weights import find_arch
from tests import golden

# The same examples in each run, whatever time they take.
quick = settings(derandomize=True, deadline=None, max_examples=80, database=None)
anything = st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=4),
                     st.lists(st.integers(-2, 9), max_size=5), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))


@quick
@given(batch=st.integers(0, 2), height=st.integers(0, 6), width=st.integers(0, 6), channels=st.integers(0, 8),
       num_heads=st.integers(-1, 5), kernel_size=st.integers(-1, 8), joint=st.booleans(), dtype=st.sampled_from(
           [torch.float32, torch.float64, torch.bfloat16, torch.int64]), transposed=st.booleans(),
       scale=st.one_of(st.none(), st.floats(-2, 2)))
def test_central_attention_is_the_reference_or_refused(batch, height, width, channels, num_heads, kernel_size, joint, dtype,
                                                       transposed, scale):
    generator = torch.Generator().manual_seed(0)

    def tokens(channels):
        shape = (width, height) if transposed else (height, width)
        x = torch.randn(batch, *shape, channels, generator=generator).to(dtype)
        return x.transpose(1, 2) if transposed else x

    inputs = (tokens(channels), tokens(2 * channels), None) if joint else (tokens(channels), tokens(channels), tokens(channels))
    try:
        found = central_attention(*inputs, num_heads, kernel_size, scale)
    except ValueError as error:
        fits = dtype.is_floating_point and num_heads > 0 and kernel_size > 0 and kernel_size % 2 and channels > 0
        assert not (fits and channels % num_heads == 0), error
        assert str(error)
        return
    if found.numel():  # the reference has no windows of nothing
        expected = central_attention(*inputs, num_heads, kernel_size, scale, backend='reference')
        torch.testing.assert_close(found, expected, **(dict(rtol=2e-2, atol=1e-2) if dtype is torch.bfloat16 else
                                                        dict(rtol=1e-5, atol=1e-6)))
    assert found.shape == inputs[0].shape
    assert found.is_contiguous()


@quick
@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=5), min_size=3, max_size=3), num_heads=st.integers(1, 4))
def test_central_attention_of_other_shapes_is_refused(shapes, num_heads):
    assume(not (shapes[0] == shapes[1] == shapes[2] and len(shapes[0]) == 4 and shapes[0][-1] % num_heads == 0))
    with pytest.raises(ValueError, match=r'.'):
        central_attention(*(torch.zeros(shape) for shape in shapes), num_heads)


@quick
@given(batch=st.integers(1, 2), height=st.integers(1, 9), width=st.integers(1, 9), channels=st.integers(1, 5),
       hidden=st.integers(1, 7), out=st.integers(1, 5), chunk=st.integers(1, 2000))
def test_an_ffn_in_chunks_is_the_whole(batch, height, width, channels, hidden, out, chunk):
    generator = torch.Generator().manual_seed(0)
    x, *parameters = (torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in (
        (batch, height, width, channels), (hidden, channels), (hidden, ), (hidden, 1, 3, 3), (hidden, ), (out, hidden),
        (out, )))
    weight1, bias1, weight, bias, weight2, bias2 = parameters
    maps = F.linear(x, weight1, bias1).permute(0, 3, 1, 2)
    expected = F.linear(F.gelu(F.conv2d(maps, weight, bias, padding=1, groups=hidden)).permute(0, 2, 3, 1), weight2, bias2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmsimvit.ops.ffn.CHUNK_BYTES', chunk)
        found = conv_ffn_in_chunks(x, *parameters)
        torch.testing.assert_close(found, expected)
        grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        for ours, theirs in zip(*(torch.autograd.grad(y, (x, *parameters), grad) for y in (found, expected))):
            torch.testing.assert_close(ours, theirs)


ARCH = dict(embed_dims=(4, 8, 12, 16), depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(1, 1, 1, 1))
arguments = st.fixed_dictionaries({}, optional=dict(
    in_channels=st.one_of(st.integers(-1, 4), anything), kernel_size=st.one_of(st.integers(-1, 7), anything),
    out_indices=st.one_of(st.lists(st.integers(-1, 4), max_size=4), anything),
    frozen_stages=st.one_of(st.integers(-2, 5), anything),
    drop_path_rate=st.one_of(st.floats(0, 1), anything), attn_drop_rate=st.one_of(st.floats(0, 1), anything),
    with_cp=st.booleans(), recompute_ffn=st.booleans()))


@quick
@given(changes=arguments, height=st.integers(1, 40), width=st.integers(1, 40))
def test_a_backbone_is_right_or_refused(changes, height, width):
    try:
        model = SimViT(ARCH, **changes)
    except ValueError as error:
        assert any(name in str(error) for name in changes), error
        return
    maps = model(torch.randn(1, model.in_channels, height, width))
    assert [tuple(x.shape) for x in maps] == [(1, channels, -(-height // stride), -(-width // stride))
                                              for channels, stride in zip(model.out_channels, model.strides)]
    assert all(x.isfinite().all() for x in maps)
    assert len(maps) == len(model.out_indices)


def archs_of(backbone):
    """Published archs with up to two of their values replaced, half of those by what another arch has."""
    def changed(arch):
        return st.lists(st.sampled_from(list(arch)), max_size=2, unique=True).flatmap(lambda keys: st.fixed_dictionaries(
            {key: values_of(key) if key in keys else st.just(value) for key, value in arch.items()}))

    def values_of(key):
        published = st.sampled_from([arch[key] for arch in backbone.arch_zoo.values()])
        return st.one_of(published, published, st.lists(st.integers(-1, 9), min_size=3, max_size=5), anything)

    return st.sampled_from(list(backbone.arch_zoo.values())).flatmap(changed)


@pytest.mark.parametrize('backbone', [LIT, DWNet, GCViT, SimViT])
def test_an_arch_is_built_or_refused(backbone):
    @quick
    @given(arch=st.one_of(archs_of(backbone), archs_of(backbone), archs_of(backbone), anything))
    def build(arch):
        with torch.device('meta'):
            try:
                model = backbone(arch)
            except ValueError as error:
                assert 'arch' in str(error) or 'embed_dims' in str(error), error
                refused.append(arch)
                return
        assert isinstance(arch, Mapping)
        assert model.out_channels == tuple(arch['embed_dims'])
        built.append(arch)

    built, refused = [], []
    build()
    assert min(len(built), len(refused)) >= 5  # the examples say something about both


PUBLISHED = {name: torch.empty(shape, device='meta')
             for name, shape in golden.load('simvit')['variants']['micro']['state'].items()}
CONVERTED = convert_state_dict('simvit', PUBLISHED)
OURS = dict(zip(PUBLISHED, CONVERTED))


@settings(quick, max_examples=25)
@given(names=st.lists(st.sampled_from(sorted(PUBLISHED)), unique=True, max_size=12), prefix=st.sampled_from(['', 'module.']),
       backbone=st.booleans(), wrapper=st.sampled_from([None, 'model', 'state_dict', 'model_ema']),
       strange=st.dictionaries(st.text(max_size=12), anything, max_size=4))
def test_a_converter_finds_each_name_among_strange_ones(names, prefix, backbone, wrapper, strange):
    assume(not set(strange) & {'model', 'state_dict', 'model_ema', 'state_dict_ema'})
    inner = prefix + ('backbone.' if backbone else '')
    content = {**strange, **{inner + name: PUBLISHED[name] for name in names}}
    checkpoint = content if wrapper is None else {wrapper: content, **strange}
    try:
        found = convert_state_dict('simvit', checkpoint)
    except ValueError as error:
        assert not names, error
        return
    for name in names:
        assert found[OURS[name]] is PUBLISHED[name]
    arch, fit = find_arch('simvit', found)
    assert arch in SimViT.published.released or not fit.complete
    assert fit.matched == len(names)


@quick
@given(checkpoint=st.recursive(anything, lambda inner: st.dictionaries(
    st.sampled_from(['model', 'state_dict', 'a', 'stages.0']), inner, max_size=3), max_leaves=6))
def test_a_converter_refuses_what_is_no_checkpoint(checkpoint):
    try:
        found = convert_state_dict('simvit', checkpoint)
    except ValueError as error:
        assert str(error)
        return
    assert any(name.startswith('stages.') for name in found)
