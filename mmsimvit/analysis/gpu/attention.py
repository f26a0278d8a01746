"""Central and neighborhood attention on a GPU: numbers, speed, tiles, and others that compute the same."""
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import central_attention, neighborhood_attention
from ..benchmark import published_simvit
from ..benchmark.measure import time_once
from . import Settings

STEPS = ('environment', 'correctness', 'speed', 'shifted', 'tiles', 'rivals', 'sanitizer', 'windows')
STAGES = {1: (200, 336, 64, 1), 2: (100, 168, 128, 2), 3: (50, 84, 320, 5)}  # height, width, channels, heads at 800 x 1344
TOLERANCES = {torch.bfloat16: 4e-2, torch.float32: 1e-5, torch.float16: 6e-3, torch.float64: 1e-11}
FORWARD_MAPS, BACKWARD_MAPS = 4, 7  # read and written at least: query, key, value, output; and the gradients of all, with these


def environment(settings: Settings) -> Iterator[dict[str, Any]]:
    """The card, its software, and how fast it copies."""
    triton = import_module('triton').__version__ if find_spec('triton') else 'none'
    compiler = next(filter(None, map(shutil.which, ('gcc', 'clang'))), 'none')
    yield dict(case='software', found=f'Python {platform.python_version()}, torch {torch.__version__}, '
               f'CUDA {torch.version.cuda}, Triton {triton}, C compiler {compiler}, {time.strftime("%Y-%m-%d")}')
    if settings.device == 'cpu':
        yield dict(case='card', found='none: a rehearsal on the CPU')
    else:
        card = torch.cuda.get_device_properties(settings.device)
        yield dict(case='card', found=f'{card.name}, compute capability {card.major}.{card.minor}, '
                   f'{card.multi_processor_count} multiprocessors, {card.total_memory / 2**30:.0f} GiB')
    source = torch.randn(2**16 if settings.rehearse else 2**28, device=settings.device)
    target = torch.empty_like(source)
    seconds = time_call(partial(target.copy_, source), settings)
    yield dict(case='copy', found=f'{2 * source.nbytes / seconds / 1e12:.2f} TB/s, read and written')


def correctness(settings: Settings) -> Iterator[dict[str, Any]]:
    """Triton's outputs and gradients beside the reference's in float64, with the window of all models, 3 x 3."""
    torch.backends.cuda.matmul.allow_tf32 = False  # some images of containers switch it on
    for dtype in TOLERANCES:
        yield dict(case=str(dtype)[6:], **largest_error(dtype, 3, (6, 32, 64), settings))
    tensors = draw(2, 4, 9, 64, settings.device, torch.float32)
    runs = [differentiate(tensors, 2, 3, 'triton') for _ in range(2 if settings.rehearse else 20)]
    yield dict(case='same bits in every run', ok=all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0])))
    compiled = torch.compile(partial(central_attention, num_heads=2), fullgraph=True, dynamic=True)
    for size in ((9, 20), (30, 17)):
        query, key, value, _ = draw(1, *size, 64, settings.device, torch.float32)
        error = (compiled(query, key, value) - central_attention(query, key, value, 2, backend='reference')).abs().max().item()
        yield dict(case=f'torch.compile, {size}', ok=error < 1e-5, error=error)
    if settings.device == 'cpu':
        yield dict(case='CUDA graph, second GPU', note='needs a GPU')
        return
    query, key, value, _ = draw(1, 30, 17, 64, settings.device, torch.float32)
    graph, out = capture(lambda: central_attention(query, key, value, 2))
    with torch.no_grad():
        query.copy_(torch.randn_like(query))
    graph.replay()
    error = (out - central_attention(query, key, value, 2, backend='reference')).abs().max().item()
    yield dict(case='CUDA graph', ok=error < 1e-5, error=error)
    if torch.cuda.device_count() > 1:
        other = f'cuda:{(torch.cuda.current_device() + 1) % torch.cuda.device_count()}'
        tensors = draw(1, 9, 20, 64, other, torch.float32)
        pairs = zip(differentiate(tensors, 2, 3, 'triton'), differentiate(tensors, 2, 3, 'reference'))
        error = max((a - b).abs().max().item() for a, b in pairs)
        yield dict(case='tensors of another GPU than the current one', ok=error < 1e-5, error=error)


def windows(settings: Settings) -> Iterator[dict[str, Any]]:
    """The same with other windows, whose kernels take long to compile: 49 positions more than a minute."""
    for kernel, dtype in product((5, ) if settings.rehearse else (1, 5, 7), TOLERANCES):
        yield dict(case=f'window {kernel}, {str(dtype)[6:]}', **largest_error(dtype, kernel, (32, ), settings))


def shifted(settings: Settings) -> Iterator[dict[str, Any]]:
    """Neighborhood attention with a bias: numbers as above, and device time at the stages of DAT++ tiny."""
    kernel = 3 if settings.rehearse else 7
    for dtype in list(TOLERANCES)[:1] if settings.rehearse else TOLERANCES:
        yield dict(case=str(dtype)[6:], **largest_error(dtype, kernel, (32, ), settings, with_bias=True))
    for stage in (1, ) if settings.rehearse else STAGES:
        height, width, _, _ = stage_shape(stage, settings)
        heads = 2**stage
        query, key, value, _ = tensors = draw(2, height, width, 32 * heads, settings.device, torch.bfloat16)
        bias = torch.zeros(heads, 2 * kernel - 1, 2 * kernel - 1, dtype=torch.bfloat16, device=settings.device)
        row: dict[str, Any] = dict(case=f'bfloat16, batch 2, stage {stage}')
        for name in ('triton', 'composite'):
            with torch.no_grad():
                row[f'{name} forward us'] = 1e6 * time_call(
                    partial(neighborhood_attention, query, key, value, heads, kernel, bias, backend=name), settings)
            row[f'{name} training us'] = 1e6 * time_call(partial(differentiate, tensors, heads, kernel, name, bias), settings)
        yield row


def largest_error(dtype: torch.dtype, kernel: int, dims: Sequence[int], settings: Settings,
                  with_bias: bool = False) -> dict[str, Any]:
    """Of Triton's outputs and gradients over the sizes and layouts of the tests, beside what is tolerated."""
    worst, place = 0., ''
    sizes = [(3, 1)] if settings.rehearse else [(1, 1), (1, 6), (3, 1), (5, 4), (9, 10), (67, 90)]
    bias = None
    if with_bias:  # whose windows need maps of their size
        sizes = [(max(height, kernel), max(width, kernel)) for height, width in sizes]
        generator = torch.Generator(settings.device).manual_seed(1)
        bias = torch.randn(2, 2 * kernel - 1, 2 * kernel - 1, generator=generator, device=settings.device).to(dtype)
    for size, channels, packed in product(sizes, dims, (False, True)):
        tensors = draw(2, *size, 2 * channels, settings.device, dtype, packed)
        found = differentiate(tensors, 2, kernel, 'triton', bias)
        expected = differentiate([x if x is None else x.double() for x in tensors], 2, kernel, 'reference',
                                 bias if bias is None else bias.double())
        error = max(((a.double() - b).abs() / (1 + b.abs())).nan_to_num(torch.inf).max().item()
                    for a, b in zip(found, expected))
        if error > worst:
            worst, place = error, f'{size}, {channels} channels a head{", packed" * packed}'
    return dict(ok=worst <= TOLERANCES[dtype], error=worst, tolerance=TOLERANCES[dtype], at=place)


def speed(settings: Settings) -> Iterator[dict[str, Any]]:
    """Device time at the stages of an 800 x 1344 image, beside a copy that reads and writes as many bytes as it must."""
    dtypes, batches = ((torch.bfloat16, ), (2, )) if settings.rehearse else ((torch.bfloat16, torch.float32), (2, 1, 8))
    for dtype, batch, stage in product(dtypes, batches, STAGES):
        height, width, channels, heads = stage_shape(stage, settings)
        query, key_value, _, upstream = draw(batch, height, width, channels, settings.device, dtype, packed=True)
        times = {}
        names = ['triton', 'published', 'composite'] if batch == 2 else ['triton']
        for name in names:
            call = (partial(published_simvit.central_attention, query, key_value, heads, 3) if name == 'published'
                    else partial(central_attention, query, key_value, None, heads, backend=name))
            out = call()
            with torch.no_grad():
                forward = time_call(call, settings)
            gradients = partial(torch.autograd.grad, out, (query, key_value), upstream, retain_graph=True)
            times[name] = forward, time_call(gradients, settings)
            del out, gradients
        row: dict[str, Any] = dict(case=f'{str(dtype)[6:]}, batch {batch}, stage {stage}')
        for step, seconds, maps, target in (('forward', 0, FORWARD_MAPS, 1.5), ('backward', 1, BACKWARD_MAPS, 2.5)):
            row[f'{step} us'] = times['triton'][seconds] * 1e6
            source = torch.empty(maps * query.numel() // 2, dtype=dtype, device=settings.device)  # is read, and written
            floor = time_call(partial(torch.empty_like(source).copy_, source), settings)
            row[f'{step} / floor'] = times['triton'][seconds] / floor
            row[f'{step} at most {target}'] = row[f'{step} / floor'] <= target if settings.device != 'cpu' else None
            for name in names[1:]:
                row[f'{step}: times {name}'] = times[name][seconds] / times['triton'][seconds]
        yield row


def tiles(settings: Settings) -> Iterator[dict[str, Any]]:
    """How much faster each tile and number of warps is than the constants in the code, forward and backward together."""
    from ...ops import triton_kernels
    constants, warps = triton_kernels.tile_constants, triton_kernels.NUM_WARPS
    shapes = [(4, 4), (4, 8)] if settings.rehearse else [(4, 4), (2, 8), (4, 8), (8, 4), (1, 16), (2, 16), (8, 8), (4, 16)]
    calls, seconds = {}, {}
    for stage in STAGES:
        height, width, channels, heads = stage_shape(stage, settings)
        tensors = draw(2, height, width, channels, settings.device, torch.bfloat16, packed=True)
        calls[stage] = partial(differentiate, tensors, heads, 3, 'triton')
        seconds[stage] = time_call(calls[stage], settings)
        now = constants(channels // heads)
        yield dict(case=f'stage {stage} now: {now["TILE_HEIGHT"]} x {now["TILE_WIDTH"]}, {warps} warps',
                   us=seconds[stage] * 1e6)
    for tile, number in product(shapes, (4, ) if settings.rehearse else (4, 2, 8, 1)):
        if tile[0] * tile[1] > 16 * number:  # more than 32 numbers of a map in each thread, which has 255 registers
            continue

        def chosen(dims: int, tile: tuple[int, int] = tile) -> dict[str, int]:
            return {**constants(dims), 'TILE_HEIGHT': tile[0], 'TILE_WIDTH': tile[1]}
        triton_kernels.tile_constants, triton_kernels.NUM_WARPS = chosen, number
        try:
            found = {f'stage {stage}: times faster': seconds[stage] / time_call(calls[stage], settings) for stage in STAGES}
        finally:
            triton_kernels.tile_constants, triton_kernels.NUM_WARPS = constants, warps
        yield dict(case=f'{tile[0]} x {tile[1]}, {number} warps', **found)


def rivals(settings: Settings) -> Iterator[dict[str, Any]]:
    """FlexAttention and, if it is installed, NATTEN, made to compute the same on a map with a border of zeros."""
    for stage in STAGES:
        height, width, channels, heads = stage_shape(stage, settings)
        query, key, value, _ = (x.detach() for x in draw(2, height, width, channels, settings.device, torch.bfloat16))
        expected = central_attention(query.float(), key.float(), value.float(), heads, backend='reference')
        ours = time_call(partial(central_attention, query, key, value, heads, backend='triton'), settings)
        q, padded_q, k, v = (x.unflatten(-1, (heads, -1)) for x in (
            query, *(F.pad(x, (0, 0, 1, 1, 1, 1)) for x in (query, key, value))))
        calls: dict[str, Callable[[], Tensor]] = {}
        if settings.device != 'cpu':
            calls['FlexAttention'] = flex(q, k, v)
        if find_spec('natten'):
            calls['NATTEN'] = partial(neighborhood, padded_q, k, v)
        if not calls:
            yield dict(case='FlexAttention, NATTEN', note='FlexAttention needs a GPU here; NATTEN is not installed')
            return
        for name, call in calls.items():
            with torch.no_grad():
                error = (call().float() - expected).abs().max().item()
                yield dict(case=f'{name}, stage {stage}, bfloat16, batch 2, forward', ok=error < 4e-2, error=error,
                           times_slower=time_call(call, settings) / ours)


def neighborhood(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """NATTEN on maps ``(B, H + 2, W + 2, heads, D)`` with a border of zeros -> ``(B, H, W, C)``."""
    return import_module('natten.functional').na2d(query, key, value, kernel_size=3)[:, 1:-1, 1:-1].flatten(-2)


def flex(query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """Compiled FlexAttention of ``(B, H, W, heads, D)`` queries on ``(B, H + 2, W + 2, heads, D)`` keys and values."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    height, width = query.shape[1:3]

    def near(batch: Tensor, head: Tensor, pixel: Tensor, other: Tensor) -> Tensor:
        rows, columns = other // (width + 2) - pixel // width, other % (width + 2) - pixel % width
        return (rows >= 0) & (rows <= 2) & (columns >= 0) & (columns <= 2)

    mask = torch.compile(create_block_mask)(near, None, None, height * width, (height + 2) * (width + 2), device=query.device)
    attend: Any = torch.compile(flex_attention)
    tokens = [x.flatten(1, 2).transpose(1, 2) for x in (query, key, value)]
    return lambda: attend(*tokens, block_mask=mask).transpose(1, 2).unflatten(1, (height, width)).flatten(-2)


def sanitizer(settings: Settings) -> Iterator[dict[str, Any]]:
    """``compute-sanitizer`` over a forward and backward pass, if it is installed."""
    tool = shutil.which('compute-sanitizer')
    if settings.device == 'cpu' or not tool:
        yield dict(case='compute-sanitizer', note='needs a GPU' if tool else 'is not installed')
        return
    code = ('from mmsimvit.analysis.gpu.attention import draw, differentiate; import torch\n'
            'for size in ((1, 1), (5, 4), (9, 10), (33, 47)):\n'
            f'    differentiate(draw(2, *size, 128, {settings.device!r}, torch.float32), 2, 3, "triton")\n'
            'torch.cuda.synchronize()')
    for check in ('memcheck', 'racecheck'):
        try:
            done = subprocess.run([tool, '--tool', check, '--error-exitcode', '9', sys.executable, '-c', code], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  timeout=max(settings.ends - time.monotonic(), 1),
                                  env={**os.environ, 'PYTORCH_NO_CUDA_MEMORY_CACHING': '1'})
        except subprocess.TimeoutExpired:
            yield dict(case=check, ok=None, note='took too long')
            return
        yield dict(case=check, ok=done.returncode == 0, note=done.stdout.strip().splitlines()[-1][:200])


def stage_shape(stage: int, settings: Settings) -> tuple[int, int, int, int]:
    """Height, width, channels and heads."""
    height, width, channels, heads = STAGES[stage]
    return (4, 5, channels, heads) if settings.rehearse else (height, width, channels, heads)


def draw(batch: int, height: int, width: int, channels: int, device: str, dtype: torch.dtype,
         packed: bool = False) -> list[Any]:
    """Query, key, value and the output's gradient; key and value in one tensor, and None, if ``packed``."""
    generator = torch.Generator(device).manual_seed(0)
    shape = batch, height, width, channels
    query, key, value, upstream = (torch.randn(shape, generator=generator, dtype=torch.float64, device=device).to(dtype)
                                   for _ in range(4))
    if packed:
        return [query.requires_grad_(), torch.cat([key, value], -1).requires_grad_(), None, upstream]
    return [query.requires_grad_(), key.requires_grad_(), value.requires_grad_(), upstream]


def differentiate(tensors: list[Any], heads: int, kernel: int, backend: str, bias: Tensor | None = None) -> list[Tensor]:
    """The output, ``(B, H, W, C)``, and the gradients of what ``draw`` gave and of the bias, with which windows are shifted."""
    inputs: list[Any] = [x if x is None else x.detach() for x in (*tensors[:-1], bias)]
    given = [x.requires_grad_() for x in inputs if x is not None]
    query, key, value, bias = inputs
    out = (central_attention(query, key, value, heads, kernel, backend=backend) if bias is None
           else neighborhood_attention(query, key, value, heads, kernel, bias, backend=backend))
    return [out, *torch.autograd.grad(out, given, tensors[-1])]


def time_call(call: Callable[[], object], settings: Settings) -> float:
    """Seconds of one call: on a GPU, of its kernels alone, the median of twenty."""
    call()  # which may compile
    device, cycles, seconds = torch.device(settings.device), 2**20, []
    for _ in range(20 if settings.device != 'cpu' else 1):
        found, cycles = time_once(call, device, cycles)
        seconds.append(found)
    return statistics.median(seconds)


def capture(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of a call, and what the call gave: its replays write there."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = call()
    return graph, out
