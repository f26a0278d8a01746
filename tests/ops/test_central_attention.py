import pytest
import torch

from mmsimvit.ops import central_attention, central_attention_reference, eager


def qkv(batch, height, width, channels, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, height, width, channels, generator=generator, dtype=torch.float64).to(dtype)
            for _ in range(3)]


def by_hand(query, key, value, num_heads, kernel_size):
    """One pixel at a time, from the paper's words."""
    out = torch.zeros_like(query)
    batch, height, width, channels = query.shape
    dims, reach = channels // num_heads, kernel_size // 2
    for b, row, col, head in torch.cartesian_prod(*map(torch.arange, (batch, height, width, num_heads))).tolist():
        part = slice(head * dims, (head + 1) * dims)
        keys, values = [], []
        for r in range(row - reach, row + reach + 1):
            for c in range(col - reach, col + reach + 1):
                inside = 0 <= r < height and 0 <= c < width
                keys.append(key[b, r, c, part] if inside else torch.zeros(dims, dtype=key.dtype))
                values.append(value[b, r, c, part] if inside else torch.zeros(dims, dtype=key.dtype))
        weights = (torch.stack(keys) @ query[b, row, col, part] / dims**0.5).softmax(0)
        out[b, row, col, part] = weights @ torch.stack(values)
    return out


@pytest.mark.parametrize('function', [central_attention, central_attention_reference])
@pytest.mark.parametrize(('shape', 'num_heads', 'kernel_size'), [
    ((2, 4, 5, 6), 2, 3), ((1, 1, 1, 4), 1, 3), ((1, 2, 7, 4), 4, 5), ((1, 3, 3, 8), 2, 7), ((1, 3, 2, 4), 1, 1)])
def test_is_what_the_paper_says(function, shape, num_heads, kernel_size):
    tensors = qkv(*shape)
    expected = by_hand(*tensors, num_heads, kernel_size)
    torch.testing.assert_close(function(*tensors, num_heads, kernel_size), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('size', [(1, 1), (1, 6), (2, 2), (3, 1), (5, 4), (17, 33)])
@pytest.mark.parametrize('kernel_size', [3, 5, 7])
def test_gradients_equal_the_references(size, kernel_size):
    tensors = [x.requires_grad_() for x in qkv(2, *size, 12)]
    upstream = torch.randn(2, *size, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(central_attention(*tensors, 3, kernel_size), tensors, upstream)
    theirs = torch.autograd.grad(central_attention_reference(*tensors, 3, kernel_size), tensors, upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_pixels_outside_stay_in_the_softmax():
    """A corner sees 4 of 9 pixels; were the other 5 masked out or the window shifted, it would give 1 like the rest."""
    ones = torch.ones(1, 3, 3, 2, dtype=torch.float64)
    out = central_attention(torch.zeros_like(ones), ones, ones, num_heads=1)[0, ..., 0]
    expected = torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]], dtype=torch.float64) / 9
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_low_precision_stays_near_float64(dtype, tolerance):
    tensors = qkv(1, 9, 8, 64)
    out = central_attention(*(x.to(dtype) for x in tensors), num_heads=2)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), central_attention(*tensors, num_heads=2), rtol=tolerance, atol=tolerance)


def test_takes_the_halves_of_a_projection_and_other_strides():
    query, key, value = qkv(2, 5, 6, 8)
    both = torch.cat([key, value], -1)
    expected = central_attention(query, key, value, 2)
    torch.testing.assert_close(central_attention(query, *both.chunk(2, -1), 2), expected, rtol=0, atol=0)
    strided = query.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    out = central_attention(strided, key, value, 2)
    torch.testing.assert_close(out, expected, rtol=1e-14, atol=1e-14)


def test_scale_and_dropout():
    query, key, value = qkv(1, 6, 6, 8)
    torch.testing.assert_close(central_attention(query, key, value, 2, scale=1.0),
                               central_attention(query * 2, key, value, 2))  # the default is 1 / sqrt(4)
    torch.manual_seed(0)
    first = central_attention(query, key, value, 2, dropout_p=0.5)
    torch.manual_seed(0)
    assert torch.equal(first, central_attention(query, key, value, 2, dropout_p=0.5))
    assert not torch.allclose(first, central_attention(query, key, value, 2))
    torch.manual_seed(1)
    mean = torch.stack([central_attention(query, key, value, 2, dropout_p=0.5) for _ in range(2000)]).mean(0)
    assert (mean - central_attention(query, key, value, 2)).abs().max() < 0.15


@pytest.mark.parametrize(('change', 'message'), [
    (dict(num_heads=3), 'num_heads must divide the 8 channels, got 3'),
    (dict(num_heads=0), 'num_heads must divide the 8 channels, got 0'),
    (dict(kernel_size=4), 'kernel_size must be odd.*got 4'),
    (dict(kernel_size=-1), 'kernel_size must be odd.*got -1'),
    (dict(dropout_p=1.0), r'dropout_p must lie in \[0, 1\), got 1.0'),
    (dict(key=torch.zeros(1, 4, 4, 8)), r'one shape.*query has \(1, 4, 5, 8\), key has \(1, 4, 4, 8\)'),
    (dict(value=torch.zeros(1, 4, 5, 8).half()), 'one floating-point dtype.*value has torch.float16'),
    (dict(query=torch.zeros(4, 5, 8)), r'\(B, H, W, C\); query has \(4, 5, 8\)'),
])
def test_refuses_what_it_does_not_compute(change, message):
    arguments = dict(zip(('query', 'key', 'value'), qkv(1, 4, 5, 8, torch.float32)), num_heads=2)
    with pytest.raises(ValueError, match=message):
        central_attention(**{**arguments, **change})


@pytest.mark.parametrize('chunk_bytes', [1, 600, 3000, 9000])
@pytest.mark.parametrize('kernel_size', [3, 5, 7])
def test_chunks_of_rows_and_of_images_change_nothing(chunk_bytes, kernel_size, monkeypatch):
    """From single rows, whose windows reach over several chunks, to some of the images at once."""
    monkeypatch.setattr(eager, 'CHUNK_BYTES', chunk_bytes)
    tensors = [x.requires_grad_() for x in qkv(5, 9, 7, 12)]
    upstream = torch.randn(5, 9, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out, expected = (f(*tensors, 3, kernel_size) for f in (central_attention, central_attention_reference))
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    for a, b in zip(torch.autograd.grad(out, tensors, upstream), torch.autograd.grad(expected, tensors, upstream)):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('shape', [(0, 4, 4, 8), (2, 0, 4, 8), (2, 4, 0, 8)])
def test_nothing_in_nothing_out(shape):
    tensors = [torch.zeros(shape, requires_grad=True) for _ in range(3)]
    out = central_attention(*tensors, 2)
    out.sum().backward()
    assert out.shape == tensors[0].grad.shape == shape


def test_the_operator_keeps_query_key_and_value_alone():
    tensors = [x.requires_grad_() for x in qkv(2, 8, 8, 16, torch.float32)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        central_attention(*tensors, 2)
    assert saved == [(2, 8, 8, 16)] * 3


def test_the_operator_is_well_formed():
    tensors = [x.requires_grad_() for x in qkv(2, 3, 4, 8)]
    torch.library.opcheck(torch.ops.mmsimvit.central_attention.default, (*tensors, 2, 3, 0.5))
    assert torch.autograd.gradcheck(lambda *x: central_attention(*x, 2), tensors)
