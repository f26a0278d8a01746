"""Whole backbones and whole models on a GPU: images a second and peak memory."""
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ...config_files import find_config
from ...weights import find_systems
from ..benchmark.candidates import PEERS, build_backbone
from ..export import Exportable, compare, export_onnx
from ..memory import random_batch
from . import Settings
from .attention import capture

STEPS = ('backbones', 'training_step', 'compiled', 'export')


def backbones(settings: Settings) -> Iterator[dict[str, Any]]:
    """Images a second in bfloat16 autocast and peak memory of ours and of MMDetection's, and a small case as a CUDA graph."""
    cases = [((64, 64), 1)] if settings.rehearse else [((800, 1344), 2), ((512, 512), 16), ((800, 1344), 8)]
    words = ['SimViT:micro', 'resnet-50'] if settings.rehearse else ['SimViT:tiny', 'SimViT:small', *PEERS]
    for word in words:
        yield run_backbone(word, *cases[0], settings)
    for word in words[:1] if settings.rehearse else ['SimViT:small', 'swin-t']:
        yield run_backbone(word, *cases[0], settings, channels_last=True)
    if settings.device == 'cpu':
        yield dict(case='CUDA graph', note='needs a GPU')
    else:
        model = build_backbone('SimViT:tiny').to(settings.device).eval()
        image = torch.randn(1, 3, 512, 512, device=settings.device)

        def call() -> object:
            with torch.autocast('cuda', torch.bfloat16, cache_enabled=False):
                return model(image)
        with torch.no_grad():
            graph, _ = capture(call)
            eager = wall(call, settings)
        replay = wall(graph.replay, settings)
        yield dict(case='SimViT:tiny, 512 x 512, batch 1, CUDA graph', **{'inference images/s': 1 / replay},
                   times_faster_than_eager=eager / replay)
    others = [] if settings.rehearse else siblings('SimViT', 'small')
    for word, case in [*product(words, cases[1:]), *product(others, cases)]:
        yield run_backbone(word, *case, settings)


def compiled(settings: Settings) -> Iterator[dict[str, Any]]:
    """The same with ``torch.compile``, which takes minutes."""
    for word in ['SimViT:micro'] if settings.rehearse else ['SimViT:tiny', 'SimViT:small', 'swin-t']:
        yield run_backbone(word, *(((64, 64), 1) if settings.rehearse else ((800, 1344), 2)), settings, compiled=True)


def siblings(system: str, arch: str) -> list[str]:
    """Of each other system of ours the variant whose number of parameters is nearest, as the benchmark names it."""
    def parameters(kind: Any, name: str) -> int:
        with torch.device('meta'):
            return sum(p.numel() for p in kind(name).parameters())
    systems = {kind.__name__: kind for kind in find_systems().values()}
    wanted, found = parameters(systems.pop(system), arch), []
    for name, kind in systems.items():
        off = {other: abs(parameters(kind, other) - wanted) for other in kind.arch_zoo}
        found.append(f'{name}:{min(off, key=off.__getitem__)}')
    return found


def run_backbone(word: str, size: tuple[int, int], batch: int, settings: Settings, channels_last: bool = False,
                 compiled: bool = False) -> dict[str, Any]:
    """Time inference and training steps of one backbone; what does not fit is said."""
    row: dict[str, Any] = dict(case=f'{word}, {size[0]} x {size[1]}, batch {batch}' + ', channels last' * channels_last
                               + ', compiled' * compiled)
    model = build_backbone(word).to(settings.device)
    image = torch.randn(batch, 3, *size, device=settings.device)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
        model = cast(Any, model).to(memory_format=torch.channels_last)  # which torch's types do not know of
    call = torch.compile(model, backend='aot_eager' if settings.rehearse else 'inductor') if compiled else model
    device = torch.device(settings.device).type

    def inference() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            call(image)

    def training() -> None:
        with torch.autocast(device, torch.bfloat16):
            outs = call(image)
        torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
        model.zero_grad(set_to_none=True)

    try:
        for name, step in (('inference', inference), ('training', training)):
            model.train(name == 'training')
            began = time.monotonic()
            step()
            if compiled:
                row[f'{name} compiled in s'] = time.monotonic() - began
            seconds, row[f'{name} peak GiB'] = wall(step, settings), peak(step, settings)
            row[f'{name} images/s'] = batch / seconds
            row[f'{name} GPU busy'] = busy(step, settings) / seconds or None  # far below 1: it waits for launches
    except torch.OutOfMemoryError:
        row.update(ok=None, note='out of memory')
    finally:
        release()
    return row


def training_step(settings: Settings) -> Iterator[dict[str, Any]]:
    """Seconds of a whole training step on random images, while twice as many still fit."""
    cases = {'maskrcnn_simvit_t_coco.py': (800, 1344), 'upernet_simvit_s_ade20k.py': (512, 512)}
    if settings.rehearse:
        cases = {'maskrcnn_simvit_micro_shapes.py': (64, 64), 'upernet_simvit_micro_shapes.py': (64, 64)}
    for name, size in cases.items():
        cfg = Config.fromfile(find_config(name))
        cfg.model.backbone.init_cfg = None
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model).to(settings.device).train()
            optimizer = build_optim_wrapper(model, {**cfg.optim_wrapper, 'type': 'AmpOptimWrapper', 'dtype': 'bfloat16',
                                                    'loss_scale': dict(enabled=False)} if settings.device != 'cpu'
                                            else cfg.optim_wrapper)
        batch, largest = 2, 0
        while batch <= (2 if settings.rehearse else 64) and time.monotonic() < settings.ends:
            data = random_batch(model, cfg.default_scope, batch, size)
            data = {key: move(value, settings.device) for key, value in data.items()}
            step = partial(model.train_step, data, optimizer)
            row: dict[str, Any] = dict(case=f'{name}, {size[0]} x {size[1]}, batch {batch}')
            try:
                losses = step()
                row['loss'] = losses['loss'].item()
                row['ok'] = row['loss'] == row['loss']
                row['s a step'], row['peak GiB'] = wall(step, settings, 5), peak(step, settings)
                row['images/s'] = batch / row['s a step']
                yield row
                largest = batch
            except torch.OutOfMemoryError:
                yield dict(**row, ok=None, note=f'out of memory; {largest} images fit')
                break
            finally:
                del data, step  # which keeps the model too
                release()
            batch *= 2
        del model, optimizer
        release()


def move(value: Any, device: str) -> Any:
    """Images and samples of a batch on a device."""
    return [move(part, device) for part in value] if isinstance(value, list) else value.to(device)


def export(settings: Settings) -> Iterator[dict[str, Any]]:
    """A backbone exported to ONNX where CUDA is, run by ONNX Runtime if that is installed."""
    try:
        import onnxruntime
    except ImportError:
        yield dict(case='ONNX Runtime', note='is not installed')
        return
    model = torch.nn.Module()
    model.backbone = build_backbone('SimViT:micro')
    exportable, path = Exportable(model, 'backbone').eval(), settings.folder / 'simvit_micro.onnx'
    export_onnx(exportable, path, (64, 96))
    shapes = [(1, 64, 96), (2, 130, 71)]
    for shape, error in zip(shapes, compare(exportable, path, shapes)):
        yield dict(case=f'SimViT:micro in ONNX Runtime {onnxruntime.__version__}, {shape}', ok=error < 1e-3, error=error)


def wall(call: Callable[[], object], settings: Settings, repeats: int = 10) -> float:
    """Seconds of one call by the clock, its launches included."""
    synchronize: Callable = torch.cuda.synchronize if settings.device != 'cpu' else nullcontext
    for _ in range(1 if settings.rehearse else 3):
        call()
    synchronize()
    began = time.perf_counter()
    repeats = 1 if settings.rehearse else repeats
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - began) / repeats


def peak(call: Callable[[], object], settings: Settings) -> float | None:
    """GiB that are allocated at most during a call, parameters included; nothing on a CPU."""
    if settings.device == 'cpu':
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / 2**30


def busy(call: Callable[[], object], settings: Settings) -> float:
    """Seconds for which a GPU computes during a call; 0 where the profiler sees none."""
    with profile(activities=[ProfilerActivity.CPU if settings.device == 'cpu' else ProfilerActivity.CUDA]) as profiler:
        call()
        if settings.device != 'cpu':
            torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages() if event.device_type == DeviceType.CUDA) / 1e6


def release() -> None:
    """Give back what is no longer used, so that the next case finds the card empty."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
