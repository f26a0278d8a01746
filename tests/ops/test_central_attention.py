from functools import partial
from importlib.util import find_spec
from itertools import product

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mmsimvit.ops import central_attention, eager
from tests.conftest import exports

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
TRITON = pytest.param('triton', marks=pytest.mark.skipif(find_spec('triton') is None, reason='Triton is not installed'))
backends = pytest.mark.parametrize('backend', ['reference', 'composite', 'eager', TRITON])


def maps(*shape, count=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for _ in range(count)]


def results(tensors, upstream, *arguments, **keywords):
    """The output and the gradients."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    packed = [None] if len(tensors) == 2 else []
    out = central_attention(*tensors, *packed, *arguments, **keywords)
    return [out, *torch.autograd.grad(out, tensors, upstream)]


def by_hand(query, key, value, num_heads, kernel_size, border='zeros', bias=None):
    """One pixel at a time, from the paper's words; or with the window shifted or cut at the border, as others do."""
    out = torch.zeros_like(query)
    batch, height, width, channels = query.shape
    dims, reach = channels // num_heads, kernel_size // 2
    for b, row, col, head in product(*map(range, (batch, height, width, num_heads))):
        part = slice(head * dims, (head + 1) * dims)
        top, left = row - reach, col - reach
        if border == 'shifted':
            top, left = min(max(top, 0), height - kernel_size), min(max(left, 0), width - kernel_size)
        keys, values = [], []
        for r, c in product(range(top, top + kernel_size), range(left, left + kernel_size)):
            inside = 0 <= r < height and 0 <= c < width
            if inside or border == 'zeros':
                keys.append(key[b, r, c, part] if inside else key.new_zeros(dims))
                values.append(value[b, r, c, part] if inside else value.new_zeros(dims))
        logits = torch.stack(keys) @ query[b, row, col, part] / dims**0.5
        if bias is not None:
            down, right = top - row + kernel_size - 1, left - col + kernel_size - 1
            logits += bias[head, down:down + kernel_size, right:right + kernel_size].flatten()
        weights = logits.softmax(0)
        out[b, row, col, part] = weights @ torch.stack(values)
    return out


@backends
@pytest.mark.parametrize(('shape', 'num_heads', 'kernel_size'), [
    ((2, 4, 5, 6), 2, 3), ((1, 1, 1, 4), 1, 3), ((1, 2, 7, 4), 4, 5), ((1, 3, 3, 8), 2, 7), ((1, 3, 2, 4), 1, 1)])
def test_is_what_the_paper_says(backend, shape, num_heads, kernel_size):
    tensors = maps(*shape)
    expected = by_hand(*tensors, num_heads, kernel_size)
    torch.testing.assert_close(central_attention(*tensors, num_heads, kernel_size, backend=backend), expected,
                               rtol=1e-12, atol=1e-12)


@backends
@pytest.mark.parametrize('others', ['shifted', 'masked'])
def test_the_border_is_neither_shifted_nor_masked(backend, others):
    """NATTEN shifts the window into the map, masked attention leaves out what lies outside: the same in the interior."""
    tensors = maps(1, 6, 7, 8)
    difference = (central_attention(*tensors, 2, backend=backend) - by_hand(*tensors, 2, 3, others)).abs().amax(-1)[0]
    assert difference[1:-1, 1:-1].max() < 1e-12
    border = torch.ones_like(difference, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert difference[border].min() > 0.01


@backends
def test_pixels_outside_stay_in_the_softmax(backend):
    """A corner sees 4 of 9 pixels; were the other 5 masked out or the window shifted, it would give 1 like the rest."""
    ones = torch.ones(1, 3, 3, 2, dtype=torch.float64, device=DEVICE)
    out = central_attention(torch.zeros_like(ones), ones, ones, num_heads=1, backend=backend)[0, ..., 0]
    expected = torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]], dtype=torch.float64, device=DEVICE) / 9
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('backend', ['composite', 'eager', TRITON])
# What packed tensors have of their own, strides, does not depend on the window; large ones take the interpreter of Triton long.
@pytest.mark.parametrize(('kernel_size', 'packed'), [(3, False), (3, True), (5, False), (7, False)],
                         ids=['3', '3, packed', '5', '7'])
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (3, 1), (5, 4), (9, 10)], ids=str)
def test_outputs_and_gradients_equal_the_references(backend, packed, kernel_size, size):
    query, key, value, upstream = maps(2, *size, 12, count=4)
    expected = results([query, key, value], upstream, 2, kernel_size, backend='reference')
    if packed:
        found = results([query, torch.cat([key, value], -1)], upstream, 2, kernel_size, backend=backend)
        found[2:] = found[2].chunk(2, -1)
    else:
        found = results([query, key, value], upstream, 2, kernel_size, backend=backend)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('backend', ['composite', 'eager', TRITON])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 6e-3)],
                         ids=str)
@pytest.mark.parametrize('dims', [32, 64])
def test_lower_precision_stays_near_float64(backend, dtype, tolerance, dims):
    query, key, value, upstream = maps(1, 7, 6, 2 * dims, count=4)
    expected = results([query, key, value], upstream, 2, backend='reference')
    found = results([x.to(dtype) for x in (query, key, value)], upstream.to(dtype), 2, backend=backend)
    assert {x.dtype for x in found} == {dtype}
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('backend', ['eager', TRITON])
def test_large_logits_neither_overflow_nor_vanish(backend):
    tensors = [20 * x for x in maps(1, 4, 5, 16, count=4, dtype=torch.float32)]
    found = results(tensors[:3], tensors[3], 1, backend=backend)
    expected = results([x.double() for x in tensors[:3]], tensors[3].double(), 1, backend='reference')
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3 * max(b.abs().max().item(), 1))


@backends
def test_takes_any_strides(backend):
    query, key, value, upstream = maps(2, 5, 6, 8, count=4)
    expected = results([query, key, value], upstream, 2, backend=backend)
    halves = torch.cat([key, value], -1).chunk(2, -1)
    as_channels_first = [x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for x in (query, key, value, upstream)]
    expanded = query[:, :1, :1].expand_as(query)
    for tensors, gradient in (((query, *halves), upstream), (as_channels_first[:3], as_channels_first[3])):
        found = results(tensors, gradient, 2, backend=backend)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(central_attention(expanded, *halves, 2, backend=backend),
                               central_attention(expanded.contiguous(), key, value, 2, backend=backend))
    assert central_attention(*as_channels_first[:3], 2, backend=backend).is_contiguous()


@backends
def test_scale(backend):
    query, key, value = maps(1, 6, 6, 8)
    torch.testing.assert_close(central_attention(query, key, value, 2, scale=1.0, backend=backend),
                               central_attention(query * 2, key, value, 2, backend=backend))  # the default is 1 / sqrt(4)


@pytest.mark.parametrize('backend', ['reference', 'composite', 'auto'])
def test_dropout_is_that_of_the_attention_weights(backend):
    torch.manual_seed(0)
    query, key, value = maps(1, 6, 6, 8)
    attend = partial(central_attention, query, key, num_heads=2, backend=backend)
    # With values of one everywhere, an output is the sum of the weights that were kept, divided by 1 - p.
    kept = torch.stack([attend(torch.ones_like(value), dropout_p=0.5) for _ in range(1000)])[:, :, 1:-1, 1:-1]
    assert torch.equal(kept[..., :4].amin(-1), kept[..., :4].amax(-1))  # one weight for all channels of a head
    assert abs(kept.mean().item() - 1) < 0.01
    assert kept.std() > 0.2
    mean = torch.stack([attend(value, dropout_p=0.5) for _ in range(1000)]).mean(0)
    assert (mean - attend(value)).abs().max() < 0.2


@pytest.mark.parametrize('backend', ['reference', 'auto'])
def test_dropout_is_reproducible_through_recomputation(backend):
    *tensors, upstream = maps(1, 6, 6, 8, count=4)
    tensors = [x.requires_grad_() for x in tensors]
    attend = partial(central_attention, num_heads=2, dropout_p=0.5, backend=backend)
    found = []
    for function in (attend, attend, partial(checkpoint, attend, use_reentrant=False)):
        torch.manual_seed(0)
        out = function(*tensors)
        found.append([out, *torch.autograd.grad(out, tensors, upstream)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert not torch.allclose(found[0][0], central_attention(*tensors, 2))


def test_autocast_lowers_the_precision_of_float32():
    low, double = maps(1, 4, 4, 8, dtype=torch.float32), maps(1, 4, 4, 8)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert central_attention(low[0], low[1].bfloat16(), low[2], 2).dtype == torch.bfloat16
        assert central_attention(*double, 2).dtype == torch.float64


@pytest.mark.parametrize(('change', 'message'), [
    (dict(num_heads=3), 'num_heads must divide the channels; got 3 heads and 8 channels'),
    (dict(num_heads=0), 'num_heads must divide the channels; got 0 heads'),
    (dict(kernel_size=4), 'kernel_size must be odd.*got 4'),
    (dict(kernel_size=-1), 'kernel_size must be odd.*got -1'),
    (dict(dropout_p=1.0), r'dropout_p must lie in \[0, 1\), got 1.0'),
    (dict(key=torch.zeros(1, 4, 4, 8)), r'one shape.*query has \(1, 4, 5, 8\), key has \(1, 4, 4, 8\)'),
    (dict(value=None), r'key \(B, H, W, 2C\) without value; query has \(1, 4, 5, 8\), key has \(1, 4, 5, 8\)'),
    (dict(value=torch.zeros(1, 4, 5, 8).half()), 'one floating-point dtype.*value has torch.float16'),
    (dict(value=torch.zeros(1, 4, 5, 8, device='meta')), 'on one device; query is on .*, value on meta'),
    (dict(query=torch.zeros(4, 5, 8)), r'\(B, H, W, C\).*query has \(4, 5, 8\)'),
    (dict(backend='cuda'), "backend must be one of auto, reference, composite, eager, triton, got 'cuda'"),
])
def test_refuses_what_it_does_not_compute(change, message):
    arguments = dict(zip(('query', 'key', 'value'), (torch.zeros(1, 4, 5, 8) for _ in range(3))), num_heads=2)
    with pytest.raises(ValueError, match=message):
        central_attention(**{**arguments, **change})


@pytest.mark.parametrize('chunk_bytes', [1, 600, 3000, 9000])
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
def test_chunks_of_rows_and_of_images_change_nothing(chunk_bytes, kernel_size, monkeypatch):
    """From single rows, whose windows reach over several chunks, to some of the images at once."""
    monkeypatch.setattr(eager, 'CHUNK_BYTES', chunk_bytes)
    monkeypatch.setattr(eager, 'DEVICE_CHUNK_BYTES', chunk_bytes)
    *tensors, upstream = maps(5, 9, 7, 12, count=4)
    for a, b in zip(results(tensors, upstream, 3, kernel_size, backend='eager'),
                    results(tensors, upstream, 3, kernel_size, backend='reference'), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('backend', ['composite', 'eager', TRITON])
@pytest.mark.parametrize('shape', [(0, 4, 4, 8), (2, 0, 4, 8), (2, 4, 0, 8)], ids=str)
def test_nothing_in_nothing_out(backend, shape):
    tensors = maps(*shape, count=4)
    found = results(tensors[:3], tensors[3], 2, backend=backend)
    assert {x.shape for x in found} == {shape}


@pytest.mark.parametrize('packed', [False, True], ids=['separate', 'packed'])
def test_the_operator_keeps_its_inputs_alone(packed):
    query, key, value = (x.requires_grad_() for x in maps(2, 8, 8, 16))
    inputs = [query, torch.cat([key, value], -1), None] if packed else [query, key, value]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()) or x, lambda x: x):
        central_attention(*inputs, 2)
    assert saved == [x.data_ptr() for x in inputs if x is not None]


@pytest.mark.parametrize('packed', [False, True], ids=['separate', 'packed'])
def test_the_operator_is_well_formed(packed):
    query, key, value = (x.requires_grad_() for x in maps(1, 3, 4, 8))
    inputs = [query, torch.cat([key, value], -1).detach().requires_grad_(), None] if packed else [query, key, value]
    torch.library.opcheck(torch.ops.mmsimvit.neighborhood_attention.default, (*inputs, None, 2, 3, 0.5, False, 'auto'))
    tensors = [x for x in inputs if x is not None]
    attend = lambda *x: central_attention(*x, *[None] * packed, 2)  # noqa: E731
    assert torch.autograd.gradcheck(attend, tensors)
    assert torch.autograd.gradgradcheck(attend, tensors)


def test_third_derivatives():
    """Through the second, which is composed of differentiable operations."""
    query, key, value = (x.requires_grad_() for x in maps(1, 2, 2, 2))
    third = []
    for backend in ('auto', 'reference'):
        x = central_attention(query, key, value, 1, backend=backend).square().sum()
        for _ in range(3):
            x = torch.autograd.grad(x, query, create_graph=True)[0].square().sum()
        third.append(x)
    torch.testing.assert_close(*third)


def test_transforms_of_torch_func():
    query, key, value, upstream = maps(3, 4, 4, 8, count=4)
    attend = partial(central_attention, num_heads=2)
    expected = results([query, key, value], upstream, 2, backend='reference')
    loss = lambda *x: (attend(*x) * upstream).sum()  # noqa: E731
    for a, b in zip(torch.func.grad(loss, (0, 1, 2))(query, key, value), expected[1:], strict=True):
        torch.testing.assert_close(a, b)
    each = torch.func.vmap(lambda *x: attend(*(y[None] for y in x))[0])(query, key, value)
    torch.testing.assert_close(each, expected[0])
    _, tangent = torch.func.jvp(attend, (query, key, value), (upstream, upstream, upstream))
    step = 1e-6
    there, back = (attend(*(x + sign * step * upstream for x in (query, key, value))) for sign in (1, -1))
    torch.testing.assert_close(tangent, (there - back) / (2 * step), rtol=1e-6, atol=1e-6)


class Attend(torch.nn.Module):
    def __init__(self, kernel_size=3):
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, query, key_value):
        return central_attention(query, key_value, None, 2, self.kernel_size)


def sizes():
    for height, width in ((5, 6), (9, 4), (3, 17)):
        yield maps(2, height, width, 8, count=1)[0], maps(2, height, width, 16, count=1, seed=1)[0]


def test_compiles_once_for_all_sizes():
    attend, expected = Attend(), Attend()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(attend, fullgraph=True, dynamic=True)
        for tensors in sizes():
            tensors = [x.requires_grad_() for x in tensors]
            found, wanted = (torch.autograd.grad(f(*tensors).square().sum(), tensors) for f in (compiled, expected))
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b)


def test_exports_and_traces_for_all_sizes():
    first = next(sizes())
    dims = {1: torch.export.Dim('height', min=3, max=999), 2: torch.export.Dim('width', min=3, max=999)}
    exported = torch.export.export(Attend(), first, dynamic_shapes=(dims, dims)).module()
    traced = torch.jit.trace(Attend(), first)
    for tensors in sizes():
        expected = central_attention(*tensors, None, 2, backend='reference')
        torch.testing.assert_close(exported(*tensors), expected)
        torch.testing.assert_close(traced(*tensors), expected)


@pytest.mark.parametrize('dropout_p', [0.0, 0.5])
@pytest.mark.full
def test_the_composite_compiles_once_for_all_sizes(dropout_p):
    attend = partial(central_attention, num_heads=2, dropout_p=dropout_p, backend='composite')
    torch._dynamo.reset()  # the other rate's program would be compiled again
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(lambda query, kv: attend(query, *kv.chunk(2, -1)), fullgraph=True, dynamic=True,
                                 backend='aot_eager')
        for query, key_value in sizes():
            out = compiled(query, key_value)
            if not dropout_p:
                torch.testing.assert_close(out, attend(query, *key_value.chunk(2, -1), backend='reference'))


@exports
@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.full
def test_onnx_for_all_sizes(tmp_path, kernel_size):
    compare_in_onnx(Attend(kernel_size), sizes(), 2, tmp_path)


def compare_in_onnx(attend, inputs, smallest, folder):
    """Export a module for the first inputs, and run what comes out on all."""
    onnxruntime = pytest.importorskip('onnxruntime')
    attend, (example, *others) = attend.cpu().float().eval(), [tuple(x.cpu().float() for x in y) for y in inputs]
    dims = {axis: torch.export.Dim(name, min=smallest, max=999) for axis, name in ((1, 'height'), (2, 'width'))}
    torch.onnx.export(attend, example, folder / 'op.onnx', dynamo=True, dynamic_shapes=(dims, ) * len(example), verbose=False)
    session = onnxruntime.InferenceSession(folder / 'op.onnx')
    for tensors in (example, *others):
        out, = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), tensors)})
        torch.testing.assert_close(torch.from_numpy(out), attend(*tensors), rtol=1e-5, atol=1e-5)


def test_sizes_without_data():
    meta = torch.empty(2, 5, 6, 8, device='meta', requires_grad=True)
    out = central_attention(meta, meta, meta, 2)
    out.sum().backward()
    assert out.shape == meta.grad.shape == meta.shape
