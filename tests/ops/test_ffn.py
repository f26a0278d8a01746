import sys

import pytest
import torch

from mmsimvit.ops import conv_ffn

ffn = sys.modules['mmsimvit.ops.ffn']
NAMES = ('x', 'weight1', 'bias1', 'conv_weight', 'conv_bias', 'weight2', 'bias2')


def arguments(batch=2, height=5, width=4, channels=3, hidden=12, dtype=torch.float64):
    shapes = ((batch, height, width, channels), (hidden, channels), (hidden, ), (hidden, 1, 3, 3), (hidden, ),
              (channels + 1, hidden), (channels + 1, ))
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.fixture
def small_is_worthwhile(monkeypatch):
    monkeypatch.setattr(ffn, 'WORTHWHILE_BYTES', 0)


@pytest.fixture
def ran(monkeypatch):
    """Which forms ran."""
    names = []
    for owner, name in ((ffn._ConvFFN, 'apply'), (ffn, '_plain'), (ffn, 'checkpoint')):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, name=name, f=original, **k: names.append(name) or f(*a, **k))
    return names


@pytest.mark.parametrize('chunk_bytes', [1, 1000, 3000, 1 << 20])
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (2, 3), (7, 4)], ids=str)
def test_chunks_give_the_numbers_of_the_whole(size, chunk_bytes, small_is_worthwhile, monkeypatch):
    monkeypatch.setattr(ffn, 'CHUNK_BYTES', chunk_bytes)
    tensors = arguments(3, *size)
    upstream = torch.randn(3, *size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole, chunked = conv_ffn(*tensors), conv_ffn(*tensors, recompute=True)
    with torch.no_grad():
        torch.testing.assert_close(conv_ffn(*tensors), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    grads = (torch.autograd.grad(out, tensors, upstream) for out in (chunked, whole))
    for name, a, b in zip(NAMES, *grads):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=lambda text, name=name: f'{name}: {text}')


def test_is_what_it_says():
    x, weight1, bias1, conv_weight, conv_bias, weight2, bias2 = arguments()
    hidden = torch.nn.functional.pad(x @ weight1.T + bias1, (0, 0, 1, 1, 1, 1))
    convolved = conv_bias + sum(conv_weight[:, 0, i, j] * hidden[:, i:i + 5, j:j + 4] for i in range(3) for j in range(3))
    expected = torch.nn.functional.gelu(convolved) @ weight2.T + bias2
    torch.testing.assert_close(conv_ffn(x, weight1, bias1, conv_weight, conv_bias, weight2, bias2), expected)


@pytest.mark.parametrize(('gradients', 'recompute', 'channels', 'worthwhile_bytes', 'expected'), [
    (False, False, 3, 0, ['apply']),  # nothing must be kept
    (False, True, 129, 0, ['apply']),
    (False, False, 3, 1 << 30, ['_plain']),  # too small to gain
    (True, False, 3, 0, ['_plain']),
    (True, True, 3, 0, ['apply']),
    (True, True, 129, 0, ['checkpoint']),  # wide: its first layer is not computed again
    (True, True, 3, 1 << 30, ['checkpoint']),
])
def test_what_runs_when(gradients, recompute, channels, worthwhile_bytes, expected, ran, monkeypatch):
    monkeypatch.setattr(ffn, 'WORTHWHILE_BYTES', worthwhile_bytes)
    with torch.set_grad_enabled(gradients):
        conv_ffn(*arguments(channels=channels), recompute=recompute)
    assert ran == expected


@pytest.mark.parametrize('change', ['bfloat16', 'autocast'])
def test_lower_precisions_are_not_chunked(change, ran, small_is_worthwhile):
    tensors = arguments(dtype=torch.bfloat16 if change == 'bfloat16' else torch.float32)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=change == 'autocast'):
        assert conv_ffn(*tensors).dtype == torch.bfloat16
    assert ran == ['_plain']


@pytest.mark.parametrize(('worthwhile_bytes', 'kept'), [(0, 1), (1 << 30, 5)], ids=['chunked', 'not chunked'])
def test_recomputation_keeps_one_map(worthwhile_bytes, kept, monkeypatch):
    """The input of 3 channels, and where that is not chunked the hidden map of 12."""
    monkeypatch.setattr(ffn, 'WORTHWHILE_BYTES', worthwhile_bytes)
    tensors = arguments()
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.update({x.data_ptr(): x.numel()}) or x, lambda x: x):
        out = conv_ffn(*tensors, recompute=True)
    maps = {pointer: count for pointer, count in saved.items() if pointer not in [p.data_ptr() for p in tensors[1:]]}
    assert sum(maps.values()) == kept * tensors[0].numel()
    out.sum().backward()


def test_only_what_asks_for_gradients_gets_them(small_is_worthwhile):
    tensors = arguments()
    for frozen in tensors[1:]:
        frozen.requires_grad_(False)
    expected, = torch.autograd.grad(conv_ffn(*tensors).sum(), tensors[0])
    found, = torch.autograd.grad(conv_ffn(*tensors, recompute=True).sum(), tensors[0])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('worthwhile_bytes', [0, 1 << 30], ids=['chunked', 'not chunked'])
def test_second_derivatives(worthwhile_bytes, monkeypatch):
    monkeypatch.setattr(ffn, 'WORTHWHILE_BYTES', worthwhile_bytes)
    tensors = arguments(1, 2, 3, 2, 2)
    assert torch.autograd.gradcheck(lambda *x: conv_ffn(*x, recompute=True), tensors)
    assert torch.autograd.gradgradcheck(lambda *x: conv_ffn(*x, recompute=True), tensors)
