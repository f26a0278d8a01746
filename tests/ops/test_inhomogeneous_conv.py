import sys

import pytest
import torch
import torch.nn.functional as F

from mmsimvit.ops import inhomogeneous_conv


def inputs(batch=2, channels=6, group_size=3, size=(5, 8), kernel_size=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, channels, *size), (batch, channels // group_size * kernel_size**2, *size)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def literal(x, kernels, group_size):
    """The definition, pixel by pixel."""
    _, channels, height, width = x.shape
    taps = kernels.shape[1] // (channels // group_size)
    size = int(taps**0.5)
    out = torch.zeros_like(x)
    for c in range(channels):
        for r in range(height):
            for q in range(width):
                for i in range(size):
                    for j in range(size):
                        row, column = r + i - size // 2, q + j - size // 2
                        if 0 <= row < height and 0 <= column < width:
                            weight = kernels[:, c // group_size * taps + i * size + j, r, q]
                            out[:, c, r, q] += weight * x[:, c, row, column]
    return out


@pytest.mark.parametrize(('group_size', 'kernel_size'), [(1, 3), (3, 3), (6, 5), (2, 7), (3, 1)])
def test_is_the_definition(group_size, kernel_size):
    x, kernels = inputs(group_size=group_size, kernel_size=kernel_size)
    with torch.no_grad():
        torch.testing.assert_close(inhomogeneous_conv(x, kernels, group_size), literal(x, kernels, group_size))


def test_one_kernel_everywhere_is_a_depthwise_convolution():
    x, _ = inputs(channels=4, size=(9, 11))
    weight = torch.randn(4, 1, 7, 7, dtype=torch.float64)
    kernels = weight.view(1, -1, 1, 1).expand(2, -1, 9, 11)
    torch.testing.assert_close(inhomogeneous_conv(x, kernels, 1), F.conv2d(x, weight, padding=3, groups=4))


@pytest.mark.parametrize('chunk_bytes', [1, 1 << 20])
def test_gradients_of_every_order(chunk_bytes, monkeypatch):
    monkeypatch.setattr(sys.modules['mmsimvit.ops.inhomogeneous_conv'], 'CHUNK_BYTES', chunk_bytes)
    x, kernels = inputs(batch=1, channels=4, group_size=2, size=(3, 4))
    torch.autograd.gradcheck(lambda x, k: inhomogeneous_conv(x, k, 2), (x, kernels))
    torch.autograd.gradgradcheck(lambda x, k: inhomogeneous_conv(x, k, 2), (x, kernels))


def test_takes_any_strides():
    x, kernels = inputs()
    expected = inhomogeneous_conv(x, kernels, 3)
    channels_last = [y.to(memory_format=torch.channels_last) for y in (x, kernels)]
    torch.testing.assert_close(inhomogeneous_conv(*channels_last, 3), expected, rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_sums_low_precision_in_float32(dtype):
    x, kernels = inputs(kernel_size=7, dtype=dtype)
    out = inhomogeneous_conv(x, kernels, 3)
    assert out.dtype == dtype
    torch.testing.assert_close(out, inhomogeneous_conv(x.double(), kernels.double(), 3).to(dtype))
    out.float().sum().backward()
    assert x.grad.dtype == kernels.grad.dtype == dtype


def test_unfolds_nothing():
    """49 taps, yet what is kept are the map and the kernels, and nothing larger than these is made."""
    x, kernels = inputs(channels=32, group_size=4, size=(16, 16), kernel_size=7, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        out = inhomogeneous_conv(x, kernels, 4)
    assert sorted(kept) == sorted([x.data_ptr(), kernels.data_ptr()])
    with torch.profiler.profile(profile_memory=True) as profile:
        out.sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest <= 1.01 * 4 * kernels.numel()  # bytes of the kernels' gradient; unfolded maps would be four times that


def test_can_be_compiled_and_exported():
    torch.library.opcheck(torch.ops.mmsimvit.inhomogeneous_conv.default, (*inputs(), 2))


def test_a_compiled_graph_holds_the_operator():
    """And nothing unfolded, as an exported one does."""
    codes = []
    compiled = torch.compile(inhomogeneous_conv, fullgraph=True,
                             backend=lambda graph, _: codes.append(graph.code) or graph)
    x, kernels = inputs()
    torch.testing.assert_close(compiled(x, kernels, 3), inhomogeneous_conv(x, kernels, 3))
    assert len(codes) == 1
    assert 'mmsimvit.inhomogeneous_conv' in codes[0]
    assert 'unfold' not in codes[0]


def test_torch_func_looks_through():
    x, kernels = inputs()
    single = torch.vmap(lambda x, k: inhomogeneous_conv(x[None], k[None], 3)[0])(x, kernels)
    torch.testing.assert_close(single, inhomogeneous_conv(x, kernels, 3))


@pytest.mark.parametrize(('change', 'message'), [
    (lambda x, k: (x, k, 4), r'C a multiple of group_size, got \(2, 6, 5, 8\) and 4'),
    (lambda x, k: (x[0], k, 3), r'x must be \(B, C, H, W\)'),
    (lambda x, k: (x, k[:, :17], 3), r'must be \(2, 2 \* k \* k, 5, 8\) with odd k, got \(2, 17, 5, 8\)'),
    (lambda x, k: (x, k[:, :8], 3), 'with odd k, got'),
    (lambda x, k: (x, k[..., 1:], 3), 'with odd k, got'),
    (lambda x, k: (x, k[0], 3), 'with odd k, got'),
])
def test_refuses_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        inhomogeneous_conv(*change(*inputs()))
