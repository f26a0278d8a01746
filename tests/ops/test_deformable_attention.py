"""Multi-scale deformable attention against a literal loop and MMCV's plain form."""
from math import floor

import pytest
import torch

from mmsimvit.ops import deformable_attention

SHAPES = [(3, 5), (2, 2)]


def arguments(batch=2, heads=2, channels=3, queries=4, points=3, spread=3., dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    keys = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, keys, heads, channels, generator=generator, dtype=dtype)
    places = torch.randn(batch, queries, heads, len(SHAPES), points, 2, generator=generator, dtype=dtype) * spread + 1
    weights = torch.rand(batch, queries, heads, len(SHAPES), points, generator=generator, dtype=dtype)
    return value.requires_grad_(), places.requires_grad_(), weights.requires_grad_()


def literally(value, shapes, places, weights):
    """One query, one place, one neighbour at a time."""
    out = torch.zeros(*places.shape[:3], value.shape[-1], dtype=value.dtype)
    for image, query, head, level, point in torch.cartesian_prod(*map(torch.arange, places.shape[:5])).tolist():
        (height, width), start = shapes[level], sum(h * w for h, w in shapes[:level])
        x, y = places[image, query, head, level, point].tolist()
        for row in (floor(y), floor(y) + 1):
            for column in (floor(x), floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[image, query, head, level, point]
                    out[image, query, head] += share * value[image, start + row * width + column, head]
    return out.flatten(2)


def test_is_what_a_loop_gives():
    value, places, weights = (tensor.detach() for tensor in arguments())
    torch.testing.assert_close(deformable_attention(value, SHAPES, places, weights), literally(value, SHAPES, places, weights))


def test_is_what_mmcv_gives():
    """Whose places are fractions of the map, from border to border."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
    value, places, weights = arguments()
    lengths = torch.tensor(SHAPES, dtype=torch.float64).flip(-1)[:, None]
    expected = multi_scale_deformable_attn_pytorch(value, SHAPES, (places + 0.5) / lengths, weights)
    found = deformable_attention(value, SHAPES, places, weights)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    for a, b in zip(*(torch.autograd.grad(out, (value, places, weights), upstream) for out in (found, expected))):
        torch.testing.assert_close(a, b)


def test_what_is_traced_gives_the_same(monkeypatch):
    tensors = arguments()
    results = []
    for is_traced in (False, True):
        monkeypatch.setattr(torch.compiler, 'is_compiling', lambda is_traced=is_traced: is_traced)
        out = deformable_attention(tensors[0], SHAPES, *tensors[1:])
        results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('number', [float('nan'), float('inf'), -float('inf'), 1e30])
def test_places_that_are_nowhere(number):
    """NaN gives NaN, of its query and head alone; what is infinitely far gives what is far away, zero."""
    value, places, weights = (tensor.detach() for tensor in arguments(spread=0.5))
    expected = deformable_attention(value, SHAPES, places, weights).unflatten(-1, (2, 3))
    places[0, 1, 1, 0, 2, 0] = number
    found = deformable_attention(value, SHAPES, places, weights).unflatten(-1, (2, 3))
    changed = torch.zeros(2, 4, 2, dtype=torch.bool)
    changed[0, 1, 1] = True
    assert torch.equal(found[~changed], expected[~changed])
    if number != number:
        assert found[changed].isnan().all()
    else:
        weights[0, 1, 1, 0, 2] = 0
        torch.testing.assert_close(found, deformable_attention(value, SHAPES, places.nan_to_num(0).clamp(-9, 9), weights)
                                   .unflatten(-1, (2, 3)))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_float32(dtype):
    """Also with places of 16 bits."""
    value, places, weights = (tensor.detach().to(dtype) for tensor in arguments())
    expected = deformable_attention(value.float(), SHAPES, places.float(), weights.float()).to(dtype)
    assert torch.equal(deformable_attention(value, SHAPES, places, weights), expected)


def test_keeps_no_samples_for_the_backward_pass():
    """MMCV's plain form keeps each sample twice."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
    tensors = arguments(heads=4, channels=32, queries=64, dtype=torch.float32)
    saved = []
    for function in (deformable_attention, multi_scale_deformable_attn_pytorch):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            function(tensors[0], SHAPES, *tensors[1:])
        saved.append(sum(sizes))
    assert saved[0] < saved[1] / 3
