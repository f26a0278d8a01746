from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmsimvit.ops import neighborhood_attention, tiles
from tests.conftest import exports
from tests.ops.test_central_attention import DEVICE, TRITON, by_hand, compare_in_onnx, maps

SLOW_TRITON = pytest.param('triton', marks=[*TRITON.marks, pytest.mark.full])  # in its interpreter

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


@pytest.mark.parametrize('backend', ['reference', 'composite', 'eager'])
@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize(('size', 'kernel_size'), [((3, 4), 3), ((6, 9), 5), ((7, 8), 7)])
def test_is_what_the_paper_says(backend, size, kernel_size, with_bias):
    query, key, value, bias, _ = inputs(size, kernel_size)
    bias = bias if with_bias else None
    expected = by_hand(query, key, value, 3, kernel_size, 'shifted', bias)
    found = neighborhood_attention(query, key, value, 3, kernel_size, bias, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('backend', ['composite', 'eager'])
@pytest.mark.parametrize(('size', 'kernel_size'), [
    ((3, 3), 3), ((3, 10), 3), ((9, 10), 5), ((7, 7), 7), ((9, 26), 7), ((4, 3), 1), ((10, 25), 9)], ids=str)
def test_outputs_and_gradients_equal_the_references(backend, size, kernel_size):
    tensors = inputs(size, kernel_size)
    expected = results(*tensors, 3, kernel_size, backend='reference')
    for a, b in zip(results(*tensors, 3, kernel_size, backend=backend), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('backend', [TRITON])
@pytest.mark.parametrize(('size', 'kernel_size', 'channels'), [  # 64 channels have tiles of 4 x 4 pixels, and 4 of 16 x 16
    ((3, 4), 3, 4), pytest.param((12, 13), 3, 64, marks=pytest.mark.full), pytest.param((9, 17), 7, 4, marks=pytest.mark.full)],
    ids=str)
def test_the_kernels_equal_the_reference(backend, size, kernel_size, channels):
    tensors = [x[:1] if x.dim() == 4 else x for x in inputs(size, kernel_size, channels=channels, num_heads=1)]
    expected = results(*tensors, 1, kernel_size, backend='reference')
    for a, b in zip(results(*tensors, 1, kernel_size, backend=backend), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('backend', ['composite', 'eager', SLOW_TRITON])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 6e-3)],
                         ids=str)
def test_lower_precision_stays_near_float64(backend, dtype, tolerance):
    tensors = inputs((4, 5), 3, channels=64, num_heads=2)
    expected = results(*tensors, 2, 3, backend='reference')
    found = results(*(x.to(dtype) for x in tensors), 2, 3, backend=backend)
    assert {x.dtype for x in found} == {dtype}
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * max(b.abs().max().item(), 1))


def test_a_bias_of_zeros_changes_nothing_and_constants_cancel():
    query, key, value, bias, _ = inputs((8, 9), 7)
    expected = neighborhood_attention(query, key, value, 3)
    for constant in (0, 5):
        torch.testing.assert_close(neighborhood_attention(query, key, value, 3, bias=torch.full_like(bias, constant)), expected)


@pytest.mark.parametrize('backend', ['eager', SLOW_TRITON])
def test_takes_any_strides_and_keys_with_values(backend):
    query, key, value, bias, upstream = inputs((3, 4), 3)
    expected = results(query, key, value, bias, upstream, 3, 3, backend='reference')
    as_channels_first = [x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for x in (query, key, value)]
    for tensors in (torch.cat([query, key, value], -1).chunk(3, -1), as_channels_first):
        found = results(*tensors, bias.mT.contiguous().mT, upstream, 3, 3, backend=backend)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    joint = torch.cat([key, value], -1).requires_grad_()
    out = neighborhood_attention(query, joint, None, 3, 3, bias, backend=backend)
    torch.testing.assert_close(torch.autograd.grad(out, joint, upstream)[0], torch.cat(expected[2:4], -1))


@pytest.mark.parametrize('chunk_bytes', [1, 30_000, 200_000])
def test_chunks_of_tiles_and_of_images_change_nothing(chunk_bytes, monkeypatch):
    """From single tiles to some of the images at once."""
    monkeypatch.setattr(tiles, 'CHUNK_BYTES', chunk_bytes)
    monkeypatch.setattr(tiles, 'DEVICE_CHUNK_BYTES', chunk_bytes)
    tensors = inputs((35, 42), 3)
    for a, b in zip(results(*tensors, 3, 3, backend='eager'), results(*tensors, 3, 3, backend='reference'), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('backend', ['composite', 'eager', TRITON])
def test_no_images_give_none(backend):
    tensors = [x[:0] if x.dim() == 4 else x for x in inputs((7, 7), 7)]
    out, *grads = results(*tensors, 3, 7, backend=backend)
    assert out.shape == grads[0].shape == (0, 7, 7, 12)
    assert not grads[-1].any()


def test_the_operator_keeps_its_inputs_alone():
    *tensors, _ = (x.requires_grad_() for x in inputs((8, 8), 7))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()) or x, lambda x: x):
        neighborhood_attention(*tensors[:3], 3, bias=tensors[3])
    assert saved == [x.data_ptr() for x in tensors]


def test_the_operator_is_well_formed():
    query, key, value, bias, _ = (x[:1].detach().requires_grad_() for x in inputs((3, 4), 3, channels=1, num_heads=1))
    torch.library.opcheck(torch.ops.mmsimvit.neighborhood_attention.default,
                          (query, key, value, bias, 1, 3, 0.5, True, 'auto'))
    attend = lambda q, k, v, b: neighborhood_attention(q, k, v, 1, 3, b)  # noqa: E731
    assert torch.autograd.gradcheck(attend, (query, key, value, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, (query, key, value, bias), fast_mode=True)


def test_its_operations_are_counted():
    *tensors, _ = (x.requires_grad_() for x in inputs((8, 9), 7))
    with FlopCounterMode(display=False) as counter:
        neighborhood_attention(*tensors[:3], 3, bias=tensors[3]).sum().backward()
    product = 2 * 2 * 8 * 9 * 12 * 49
    assert counter.get_total_flops() == 2 * product + 5 * product


def test_autocast_lowers_the_precision_of_float32_and_of_the_bias():
    query, key, value, bias, _ = inputs((7, 8), 7, torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert neighborhood_attention(query, key.bfloat16(), value, 3, bias=bias).dtype == torch.bfloat16


def test_dropout_is_that_of_the_attention_weights():
    torch.manual_seed(0)
    query, key, value, bias, _ = inputs((3, 4), 3)
    attend = partial(neighborhood_attention, query, key, num_heads=3, kernel_size=3, bias=bias, dropout_p=0.5)
    kept = torch.stack([attend(torch.ones_like(value)) for _ in range(500)])
    assert abs(kept.mean().item() - 1) < 0.01
    assert kept.std() > 0.2
    mean = torch.stack([attend(value) for _ in range(1000)]).mean(0)
    assert (mean - attend(value, dropout_p=0)).abs().max() < 0.2


@pytest.mark.parametrize(('change', 'message'), [
    (dict(query=torch.zeros(1, 6, 8, 8)), 'one shape'),
    (dict(kernel_size=9), 'a map of 7 x 8 pixels has no window of 9 x 9; pad it'),
    (dict(kernel_size=6), 'kernel_size must be odd.*got 6'),
    (dict(bias=torch.zeros(2, 7, 7)), r'bias must be .*\(2, 13, 13\), got \(2, 7, 7\)'),
    (dict(bias=torch.zeros(2, 13, 13).half()), 'one floating-point dtype.*bias has torch.float16'),
])
def test_refuses_what_it_does_not_compute(change, message):
    arguments = dict(zip(('query', 'key', 'value'), (torch.zeros(1, 7, 8, 8) for _ in range(3))), num_heads=2)
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(**{**arguments, **change})


class Attend(torch.nn.Module):

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(maps(2, 5, 5, count=1)[0])

    def forward(self, query, key, value):
        return neighborhood_attention(query, key, value, 2, 3, self.bias)


def sizes():
    for height, width in ((5, 6), (9, 4), (3, 17)):
        yield maps(2, height, width, 8)


def test_compiles_once_for_all_sizes():
    attend, expected = Attend(), Attend()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend='aot_eager')
        for tensors in sizes():
            tensors = [x.requires_grad_() for x in tensors]
            found, wanted = (torch.autograd.grad(f(*tensors).square().sum(), [*tensors, f_bias])
                             for f, f_bias in ((compiled, attend.bias), (expected, expected.bias)))
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize('strict', [False, True])
def test_exports_for_all_sizes(strict):
    attend, first = Attend(), tuple(next(sizes()))
    dims = {1: torch.export.Dim('height', min=3, max=999), 2: torch.export.Dim('width', min=3, max=999)}
    exported = torch.export.export(attend, first, dynamic_shapes=(dims, ) * 3, strict=strict).module()
    for tensors in sizes():
        torch.testing.assert_close(exported(*tensors), attend(*tensors))


@exports
@pytest.mark.full
def test_onnx_for_all_sizes(tmp_path):
    compare_in_onnx(Attend(), sizes(), 3, tmp_path)


def test_sizes_without_data():
    meta = torch.empty(2, 7, 9, 8, device='meta', requires_grad=True)
    out = neighborhood_attention(meta, meta, meta, 2, bias=torch.empty(2, 13, 13, device='meta'))
    out.sum().backward()
    assert out.shape == meta.grad.shape == meta.shape
