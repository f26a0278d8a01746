from functools import partial

import pytest
import torch

from mmsimvit.ops import neighborhood_attention
from tests.ops.test_central_attention import by_hand, maps

backends = pytest.mark.parametrize('backend', ['reference', 'composite', 'eager'])
SIZES = [((3, 3), 3), ((3, 10), 3), ((9, 10), 5), ((7, 7), 7), ((9, 26), 7), ((4, 3), 1), ((10, 25), 9)]


def inputs(size, kernel_size, dtype=torch.float64, channels=12, num_heads=3):
    """Query, key, value, bias, and a gradient."""
    query, key, value, upstream = maps(2, *size, channels, count=4, dtype=dtype)
    bias, = maps(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1, count=1, dtype=dtype, seed=1)
    return query, key, value, bias, upstream


def results(query, key, value, bias, upstream, num_heads, kernel_size, **keywords):
    """The output and the gradients."""
    tensors = [x.detach().requires_grad_() for x in (query, key, value, bias)]
    out = neighborhood_attention(*tensors[:3], num_heads, kernel_size, tensors[3], **keywords)
    return [out, *torch.autograd.grad(out, tensors, upstream)]


@backends
@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize(('size', 'kernel_size'), [((3, 4), 3), ((6, 9), 5), ((7, 8), 7)])
def test_is_what_the_paper_says(backend, size, kernel_size, with_bias):
    query, key, value, bias, _ = inputs(size, kernel_size)
    bias = bias if with_bias else None
    expected = by_hand(query, key, value, 3, kernel_size, 'shifted', bias)
    found = neighborhood_attention(query, key, value, 3, kernel_size, bias, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('backend', ['composite', 'eager'])
@pytest.mark.parametrize(('size', 'kernel_size'), SIZES, ids=str)
def test_outputs_and_gradients_equal_the_references(backend, size, kernel_size):
    tensors = inputs(size, kernel_size)
    expected = results(*tensors, 3, kernel_size, backend='reference')
    for a, b in zip(results(*tensors, 3, kernel_size, backend=backend), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_gradients_of_the_bias_are_those_of_differences():
    query, key, value, bias, _ = (x.requires_grad_() for x in inputs((3, 4), 3, channels=2, num_heads=1))
    attend = partial(neighborhood_attention, num_heads=1, kernel_size=3)
    assert torch.autograd.gradcheck(lambda q, k, v, b: attend(q, k, v, bias=b), (query, key, value, bias))
