import sys

import pytest
import torch
import torch.nn.functional as F

from mmsimvit.ops import conv_ffn_in_chunks
from mmsimvit.ops.ffn import suits_chunks

ffn = sys.modules['mmsimvit.ops.ffn']
NAMES = ('x', 'weight1', 'bias1', 'conv_weight', 'conv_bias', 'weight2', 'bias2')


def arguments(batch=2, height=5, width=4, channels=3, hidden=12, out_channels=4, dtype=torch.float64):
    shapes = ((batch, height, width, channels), (hidden, channels), (hidden, ), (hidden, 1, 3, 3), (hidden, ),
              (out_channels, hidden), (out_channels, ))
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def as_a_whole(x, weight1, bias1, conv_weight, conv_bias, weight2, bias2):
    """From shifted copies of the hidden map, without a convolution."""
    height, width = x.shape[1:3]
    hidden = F.pad(x @ weight1.T + bias1, (0, 0, 1, 1, 1, 1))
    convolved = conv_bias + sum(conv_weight[:, 0, i, j] * hidden[:, i:i + height, j:j + width]
                                for i in range(3) for j in range(3))
    return F.gelu(convolved) @ weight2.T + bias2


@pytest.mark.parametrize('chunk_bytes', [1, 1000, 3000, 1 << 20])
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (2, 3), (7, 4)], ids=str)
def test_chunks_give_the_numbers_of_the_whole(size, chunk_bytes, monkeypatch):
    monkeypatch.setattr(ffn, 'CHUNK_BYTES', chunk_bytes)
    tensors = arguments(3, *size)
    upstream = torch.randn(3, *size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole, chunked = as_a_whole(*tensors), conv_ffn_in_chunks(*tensors)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    grads = (torch.autograd.grad(out, tensors, upstream) for out in (chunked, whole))
    for name, a, b in zip(NAMES, *grads):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=lambda text, name=name: f'{name}: {text}')


def test_keeps_its_input_alone():
    tensors = arguments()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()) or x, lambda x: x):
        out = conv_ffn_in_chunks(*tensors)
    assert saved == [x.data_ptr() for x in tensors]
    out.sum().backward()


def test_only_what_asks_for_gradients_gets_them():
    tensors = arguments()
    for frozen in tensors[1:]:
        frozen.requires_grad_(False)
    found, = torch.autograd.grad(conv_ffn_in_chunks(*tensors).sum(), tensors[0])
    expected, = torch.autograd.grad(as_a_whole(*tensors).sum(), tensors[0])
    torch.testing.assert_close(found, expected)


def test_second_derivatives():
    tensors = arguments(1, 2, 3, 2, 2)
    assert torch.autograd.gradcheck(conv_ffn_in_chunks, tensors)
    assert torch.autograd.gradgradcheck(conv_ffn_in_chunks, tensors)


def test_gradients_to_be_differentiated_do_not_count_twice_what_depends_on_another_input():
    x, *weights = arguments(out_channels=3)
    grads = []
    for function in (conv_ffn_in_chunks, as_a_whole):
        out = function(function(x, *weights), *weights)
        grads.append(torch.autograd.grad(out.square().sum(), [x, *weights], create_graph=True))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(('changes', 'expected'), [
    (dict(), True),
    (dict(worthwhile_bytes=1 << 30), False),  # too small to gain
    (dict(channels=129), True),
    (dict(channels=129, with_gradients=True, save_memory=True), False),  # wide: computing its first layer again costs more
    (dict(channels=128, with_gradients=True, save_memory=True), True),
    (dict(channels=65, with_gradients=True), False),  # would save memory, but not time
    (dict(channels=64, with_gradients=True), True),
    (dict(channels=64, with_gradients=True, quick_bytes=1 << 25), False),
    (dict(channels=64, with_gradients=True, quick_bytes=1 << 25, save_memory=True), True),
    (dict(dtype=torch.bfloat16), False),
    (dict(autocast=True), False),
])
def test_what_suits_chunks(changes, expected, monkeypatch):
    changes = dict(worthwhile_bytes=0, quick_bytes=0, channels=3, with_gradients=False, save_memory=False,
                   dtype=torch.float32, autocast=False) | changes
    monkeypatch.setattr(ffn, 'WORTHWHILE_BYTES', changes['worthwhile_bytes'])
    monkeypatch.setattr(ffn, 'QUICKLY_RECOMPUTED_BYTES', changes['quick_bytes'])
    x, weight1, *_ = arguments(channels=changes['channels'], dtype=changes['dtype'])
    with torch.autocast('cpu', torch.bfloat16, enabled=changes['autocast']):
        assert suits_chunks(x, weight1, changes['with_gradients'], changes['save_memory']) is expected
