"""Models as ONNX files that take images of any size, and what ONNX Runtime makes of them."""
import copy
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import revert_sync_batchnorm
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes
from torch.overrides import TorchFunctionMode

from ..backbones import Backbone
from ..dry_run import image_channels, is_a
from ..errors import CheckpointError, ModelError
from ..files import atomic_write
from ..weights import as_mmengine_reads, load_file, match, strip_module, strip_prefix

PARTS = ('backbone', 'neck', 'model')
INSTALL = 'pip install onnx onnxruntime onnxscript'
EXPORTS = digit_version(torch.__version__) >= digit_version('2.11')  # between it and 2.6 nothing was tried
TO_THE_END = 2**62  # of an axis, for ONNX's Slice


class Exportable(nn.Module):
    """The backbone, the backbone with its neck, or the whole of a model, from images to tensors.

    Raises:
        ModelError: for a part that the model does not have, and for whole detectors.
    """

    def __init__(self, model: nn.Module, part: str):
        super().__init__()
        name = type(model).__name__
        if part != 'model' and getattr(model, part, None) is None:
            raise ModelError(f'{name} has no {part}; --part exports one of {", ".join(PARTS)}')
        if part == 'model' and not (is_a(model, 'BaseSegmentor') or is_a(model, 'BaseClassifier')):
            raise ModelError(f'{name} is no segmentor or classifier: of a detector, --part backbone or --part neck is '
                             'exported; for the whole of it, with the selection of its boxes, use MMDeploy')
        self.model, self.part = revert_sync_batchnorm(model), part

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` -> the maps of the backbone or neck; or the scores of a classifier, ``(B, classes)``, or a
        segmentor, ``(B, classes, H, W)``, before softmax or sigmoid."""
        if self.part == 'backbone':
            outs = self.model.backbone(images)
        elif self.part == 'neck':
            outs = self.model.extract_feat(images)
        elif is_a(self.model, 'BaseSegmentor'):
            outs = self.model.encode_decode(images, [dict(img_shape=images.shape[2:])])
        else:
            outs = self.model(images, mode='tensor')
        return (outs, ) if isinstance(outs, Tensor) else tuple(outs)

    def load_weights(self, path: str) -> dict:
        """Load what is exported from a checkpoint, which must have all of it, and give the checkpoint's ``meta``.

        Raises:
            CheckpointError: if it cannot be read, or lacks a parameter.
        """
        checkpoint = load_file(path)
        weights, module = strip_module(as_mmengine_reads(checkpoint)), self.model
        if self.part == 'backbone':
            weights, module = strip_prefix(weights), self.model.backbone
        elif self.part == 'neck':
            module = nn.ModuleDict(dict(backbone=self.model.backbone, neck=self.model.neck))
        found = match(module, weights)
        if found.matched < found.total:
            raise CheckpointError(f'checkpoint {path} gives {found.matched} of the {found.total} parameters of the {self.part} '
                                  f'of {type(self.model).__name__}: '
                                  f'{found.problems() or "it lacks " + ", ".join(found.added[:3])}; is it of this config?')
        module.load_state_dict(weights, strict=False)
        return checkpoint.get('meta') or {}


def export_onnx(exportable: Exportable, path: str | Path, shape: tuple[int, int], static: bool = False,
                metadata: dict | None = None, check: Callable[[Path], None] | None = None) -> None:
    """Write an ONNX file with the input ``images``, float32, and the outputs ``logits`` or ``features_0``, ``features_1`` ...

    Args:
        exportable: what is exported, in eval mode.
        path: the file, which is written as a whole or not at all.
        shape: height and width of the image that is traced.
        static: whether the file takes one image of this shape alone; else batch, height and width are free.
        metadata: strings, and what JSON can express; goes into the file.
        check: called with the finished file, before it gets its name. What it raises keeps the file from being there.

    Raises:
        ModelError: if the model cannot be traced or expressed in ONNX.
    """
    path, name = Path(path), type(exportable.model).__name__
    name = name if exportable.part == 'model' else f'the {exportable.part} of {name}'
    # With smaller ones, a last map may have one row or column, for which tracing would make a case of its own.
    least_size = getattr(exportable.model.backbone, 'min_traced_size', Backbone.min_traced_size)
    if not static and min(shape) < least_size:
        raise ModelError(f'the traced image must have at least {least_size} x {least_size} pixels, '
                         f'got {shape[0]} x {shape[1]}; give a larger --shape, or --static for this one alone')
    image = torch.zeros(1 if static else 2, image_channels(exportable.model), *shape)
    dims = None if static else ({axis: torch.export.Dim(word, min=least) for axis, word, least in (
        (0, 'batch', 1), (2, 'height', least_size), (3, 'width', least_size))}, )
    traceable = _make_traceable(copy.deepcopy(exportable))
    try:
        with torch.no_grad(), _for_any_size(), _PoolingOfSinglePixels():
            outputs = len(exportable(image))
            traced = torch.export.export(traceable, (image, ), dynamic_shapes=dims, strict=False)
            program = torch.onnx.export(
                traced, dynamo=True, verbose=False, dynamic_shapes=dims, input_names=['images'],
                output_names=['logits'] if exportable.part == 'model' else [f'features_{i}' for i in range(outputs)],
                custom_translation_table={torch.ops.mmsimvit.neighborhood_attention.default: _central_attention})
            assert program is not None  # torch gives it where it gets no file
    except Exception as error:  # of many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        advice = '' if EXPORTS else '; torch 2.6 cannot export most models, use 2.11 or later'
        raise ModelError(f'{name} cannot be exported for {"this image" if static else "images of any size; try --static"}: '
                         f'{lines[0]}{advice}') from error
    program.model.metadata_props.update(
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()})

    def write(unfinished: Path) -> None:
        program.save(unfinished, external_data=False)
        if check:
            check(unfinished)

    atomic_write(path, write)


def compare(exportable: Exportable, path: str | Path, shapes: Iterable[tuple[int, int, int]]) -> list[float]:
    """For each ``(batch, height, width)``, the largest difference of ONNX Runtime's outputs from PyTorch's on random
    images, relative to the outputs' standard deviation."""
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    differences = []
    for batch, height, width in shapes:
        images = torch.randn(batch, image_channels(exportable.model), height, width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = exportable(images)
        found = map(torch.from_numpy, session.run(None, {'images': images.numpy()}))
        differences.append(max(((a - b).abs().max() / (b.std(correction=0) or 1)).item()
                               for a, b in zip(found, expected, strict=True)))
    return differences


def describe(exportable: Exportable) -> dict:
    """What is to be known of input and output, for the file's metadata."""
    preprocessor = exportable.model.data_preprocessor
    to_rgb = any(getattr(preprocessor, name, False) for name in ('_channel_conversion', 'channel_conversion', 'to_rgb'))
    found = dict(model=type(exportable.model).__name__, part=exportable.part, channels='RGB' if to_rgb else 'BGR')
    if getattr(preprocessor, 'mean', None) is not None:
        found |= {name: getattr(preprocessor, name).flatten().tolist() for name in ('mean', 'std')}
        found['preprocessing'] = 'not included; images = (pixels of 0 to 255 - mean) / std'
    if exportable.part == 'model':
        found['logits'] = 'class scores before softmax or sigmoid'
    return found


def _central_attention(query: Any, key: Any, value: Any, bias: None, num_heads: int, kernel_size: int, scale: float,
                       shifted: bool, backend: str) -> Any:
    """Our operator in ONNX's, for any size: the map meets itself, moved by one position of the window after the other.

    Traced from the composite form in Python instead, it would have twice the nodes and take thrice the time to export.
    """
    from onnxscript import opset18
    op: Any = opset18  # whose types do not say of which kind a constant is
    assert not shifted  # which is traced in its composite form
    reach = kernel_size // 2
    if value is None:
        key, value = op.Split(key, num_outputs=2, axis=-1)
    heads = op.Constant(value_ints=[0, 0, 0, num_heads, -1])  # 0 keeps a length
    around = op.Constant(value_ints=[0, reach, reach, 0, 0, reach, reach, 0])

    def neighbours(x: Any) -> Iterator[Any]:
        x = op.Reshape(op.Pad(x, around), heads)
        for top in range(kernel_size):
            for left in range(kernel_size):
                ends = [start - 2 * reach if start < 2 * reach else TO_THE_END for start in (top, left)]
                yield op.Slice(x, op.Constant(value_ints=[top, left]), op.Constant(value_ints=ends),
                               op.Constant(value_ints=[1, 2]))

    query = op.Reshape(op.Mul(query, op.CastLike(op.Constant(value_float=scale), query)), heads)
    last = op.Constant(value_ints=[-1])
    logits = [op.ReduceSum(op.Mul(query, x), last, keepdims=1) for x in neighbours(key)]
    weights = op.Split(op.Softmax(op.Concat(*logits, axis=-1), axis=-1), num_outputs=kernel_size**2, axis=-1)
    out = op.Sum(*(op.Mul(weight, x) for weight, x in zip(weights, neighbours(value))))
    return op.Reshape(out, op.Constant(value_ints=[0, 0, 0, -1]))


def _for_any_size() -> AbstractContextManager:
    """Let tracing treat a length of 1, which small maps have, as any other; torch.onnx does so when it traces."""
    if hasattr(symbolic_shapes, 'backed_size_oblivious'):  # torch 2.8
        return symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]  # torch adds it when imported
    return nullcontext()


class _PoolingOfSinglePixels(TorchFunctionMode):
    """Take every other pixel, as FPN does for its extra level, by slicing; pooling would tie the traced size to odd or even."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        single = func is F.max_pool2d and args[1:] == (1, ) and isinstance(kwargs.get('stride'), int)
        if single and not any(kwargs.get(name) for name in ('padding', 'ceil_mode', 'return_indices')):
            return args[0][..., ::kwargs['stride'], ::kwargs['stride']]
        return func(*args, **kwargs)


def _make_traceable(model: nn.Module) -> nn.Module:
    """Replace what would tie a graph to the traced size, by what gives the same numbers."""
    for module in model.modules():
        pools = isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1))
        if pools:
            module.forward = MethodType(_adaptive_average_pool, module)
        elif is_a(module, 'Upsample') and not isinstance(module, nn.Upsample):
            module.forward = MethodType(_upsample, module)
    return model


def _adaptive_average_pool(pool: nn.AdaptiveAvgPool2d, x: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, C, h, w)`` as two matrix products; ONNX has no pooling of any size to a given one."""
    sizes = pool.output_size if isinstance(pool.output_size, tuple) else (pool.output_size, ) * 2
    rows, columns = (_shares(length, length if size is None else size, x) for length, size in zip(x.shape[2:], sizes))
    return rows @ x @ columns.transpose(0, 1)


def _shares(length: int, size: int, like: Tensor) -> Tensor:
    """``(size, length)``: what each pixel contributes to the mean of each bin; PyTorch's bins may overlap."""
    bins, pixels = torch.arange(size), torch.arange(length)
    starts, stops = bins * length // size, ((bins + 1) * length + size - 1) // size
    inside = (pixels >= starts[:, None]) & (pixels < stops[:, None])
    return inside.to(like.dtype) / (stops - starts)[:, None]


def _upsample(upsample: Any, x: Tensor) -> Tensor:
    """MMSegmentation's ``Upsample``, without its ``int(...)`` of a length, which tracing takes for constant."""
    return F.interpolate(x, upsample.size, None if upsample.size else upsample.scale_factor, upsample.mode,
                         upsample.align_corners)
