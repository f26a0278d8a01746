"""Parameters, multiply-accumulates and activations of a model, by part, without data and without memory for its maps."""
import re
from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ..dry_run import detector_of, is_a, prepare
from ..errors import ModelError
from ..ops.backends import use_backend

Counts = dict[str, dict[Any, int]]  # operators' numbers by the module around them, as FlopCounterMode gives them


class Part(NamedTuple):
    """One line of the table; it includes the lines of a higher level that follow it."""
    name: str
    level: int  # 0 the model, 1 its parts, 2 the stages of a backbone, 3 the modules of a stage
    parameters: int
    macs: int  # multiply-accumulates; 1 MAC = 2 FLOPs
    activations: int  # numbers, not bytes

    @property
    def flops(self) -> int:
        """Two for each MAC."""
        return 2 * self.macs


class Complexity(NamedTuple):
    """What a model computes for one image, as a table."""
    parts: list[Part]
    notes: list[str]  # sentences on what was and was not counted

    @property
    def total(self) -> Part:
        """The line of the whole model."""
        return self.parts[0]


def count_complexity(model: nn.Module, shape: tuple[int, int], num_proposals: int | None = None) -> Complexity:
    """Count what a model computes for one image.

    PyTorch's ``FlopCounterMode`` counts convolutions, linear layers and matrix products. Full attention is counted as its two
    products over all pixels. The operators of ``mmsimvit.ops`` bring formulas of their own: central and neighborhood attention
    have two products over ``k * k`` pixels, also where the window reaches over the border. Deformable convolutions count as
    convolutions.

    Not counted is elementwise work: norms, softmax, activation functions, biases, additions, the sampling of deformable
    convolutions and deformable attention, resizing and pooling. What follows the heads is not counted either. Activations are
    the numbers in the outputs of what is counted, with the attention weights. fvcore and MMEngine count activations alike.

    SimViT's published 0.65 (micro) and 6.2 (small) GMACs at 224 x 224 are counted in this way. fvcore and MMEngine call MACs
    FLOPs and count norms; they miss ``scaled_dot_product_attention`` and operators such as ours.

    Args:
        model: a detector, segmentor, classifier or backbone. It is copied, not changed.
        shape: height and width of the image that the backbone gets, in pixels.
        num_proposals: for two-stage detectors; ``test_cfg.rpn.max_per_img`` if None.

    Raises:
        ModelError: if the model cannot be run in its libraries' ``tensor`` mode; the message says why.
    """
    model = detector_of(model)
    notes = ['Not counted: elementwise work (norms, activation functions, softmax, additions), resizing and pooling.']
    if is_a(model, 'BaseDetector'):
        notes.append('Not counted: what follows the heads (decoding of boxes, selection of proposals, NMS, pasting of masks).')
    try:
        flops, activations, rois = _run(model, shape, num_proposals, 'meta')
    except Exception as reason:  # of any kind: some models look at their numbers, some operators exist for real devices alone
        try:
            flops, activations, rois = _run(model, shape, num_proposals, 'cpu')
        except Exception as error:
            raise ModelError(f'{type(model).__name__} cannot be run on an image of {shape[0]} x {shape[1]} pixels: '
                             + (str(error).strip().splitlines() or [type(error).__name__])[0]) from error
        notes.append('Run on the CPU with random numbers, since it does not run without: '
                     + (re.split(r'\. |\n', str(reason).strip())[0] or type(reason).__name__))
    modules = dict(model.named_modules())
    deformable = getattr(torch.ops.torchvision, 'deform_conv2d', None)
    uncounted = {type(module).__name__ for name, module in modules.items()
                 if any(base.__module__.startswith('mmcv.ops') for base in type(module).__mro__)
                 and deformable not in flops.get(_key(model, name), ())}
    if uncounted:
        notes.append(f"Not counted: MMCV's operators in {', '.join(sorted(uncounted))}.")
    parts = _table(model, flops, activations)
    idle = [part.name for part in parts if part.level == 1 and not part.macs and part.name in modules
            and any(isinstance(module, (nn.Conv2d, nn.Linear)) for module in modules[part.name].modules())]
    if idle:
        notes.append(f'Not run outside of training: {", ".join(idle)}.')
    if rois:
        stages = Counter(rois)
        notes.insert(0, 'Regions: ' + ', '.join(
            f'{number} for {name} heads{f" in each of {stages[name, number]} stages" if stages[name, number] > 1 else ""}'
            for name, number in stages) + '.')
    return Complexity(parts, notes)


def _deform_conv_flops(x: torch.Size, weight: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


def _outputs(*_: object, out_shape: torch.Size, **__: object) -> int:
    return prod(out_shape)


def _neighborhood_attention_outputs(query: torch.Size, key: torch.Size, value: torch.Size | None, bias: torch.Size | None,
                                    num_heads: int, kernel_size: int, *_: object, out_shape: torch.Size,
                                    **__: object) -> int:
    return prod(out_shape) + prod(query[:3]) * num_heads * kernel_size**2  # the output and the weights


def _run(original: nn.Module, shape: tuple[int, int], num_proposals: int | None,
         device: str) -> tuple[Counts, Counts, list[tuple[str, int]]]:
    """FLOPs and activations of a copy of the model on a device, and on how many regions each part of a second stage was run."""
    _, run, regions = prepare(original, shape, device, num_proposals)
    formulas = {}
    if hasattr(torch.ops.torchvision, 'deform_conv2d'):  # torchvision has no formula for it
        formulas[torch.ops.torchvision.deform_conv2d] = _deform_conv_flops
    outputs: dict[Any, Callable] = dict.fromkeys([*flop_registry, *formulas], _outputs)
    outputs[torch.ops.mmsimvit.neighborhood_attention] = _neighborhood_attention_outputs
    flops, activations = (FlopCounterMode(display=False, custom_mapping=mapping) for mapping in (formulas, outputs))
    # PyTorch has no formulas for the fused kernels of a CPU, and the composite form of our operator is elementwise.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), use_backend('auto'), flops, activations:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return flops.get_flop_counts(), activations.get_flop_counts(), regions


def _table(model: nn.Module, flops: Counts, activations: Counts) -> list[Part]:
    parts: list[Part] = []

    def add(title: str, level: int, names: list[str]) -> tuple[int, int, int]:
        """Add the lines of modules that are counted together; give their numbers."""
        shared = {id(parameter): parameter.numel() for name in names for parameter in model.get_submodule(name).parameters()}
        numbers = (sum(shared.values()), sum(_count(model, name, flops) for name in names) // 2,
                   sum(_count(model, name, activations) for name in names))
        if not any(numbers):
            return numbers
        parts.append(Part(title, level, *numbers))
        number_of_lines, lines = len(parts), _lines(model, title, level, names)
        inside = [add(other, level + 1, lines[other]) for other in lines]
        others = Part('other', level + 1, *(max(0, whole - sum(some)) for whole, *some in zip(numbers, *inside)))
        if inside and any(others[2:]):
            parts.append(others)
        if level == 2 and len(parts) == number_of_lines + 1:  # the same once more
            parts.pop()
        return numbers

    add(type(model).__name__, 0, [''])
    return parts


def _lines(model: nn.Module, title: str, level: int, names: list[str]) -> dict[str, list[str]]:
    """The lines below one of the table: title -> the modules that are counted there."""
    if level == 0 and not hasattr(model, 'backbone'):
        return {'backbone': ['']}  # the model is one
    if level == 0:
        heads = [f'roi_head.{name}' for name, _ in getattr(model, 'roi_head', nn.Module()).named_children()]
        return {name: [name] for name, _ in model.named_children() if name != 'roi_head'} | {name: [name] for name in heads}
    lines: dict[str, list[str]] = {}
    if level == 1 and title == 'backbone':
        for name, child in model.get_submodule(names[0]).named_children():
            stages = [f'{name}.{index}' for index in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
            lines |= {stage: [f'{names[0]}.{stage}'.lstrip('.')] for stage in stages}
    elif level == 2:
        for line, path in _modules(model.get_submodule(names[0])):
            lines.setdefault(line, []).append(f'{names[0]}.{path}')
    return lines


def _modules(stage: nn.Module) -> Iterator[tuple[str, str]]:
    """The modules of a stage, and of its blocks: their lines, ``blocks.*.attn`` for that of every block, and their names."""
    for name, child in stage.named_children():
        word = '*' if name.isdigit() else name
        inner = list(_modules(child)) if name.isdigit() or isinstance(child, nn.ModuleList) else []
        yield from [(f'{word}.{line}', f'{name}.{path}') for line, path in inner] or [(word, name)]


def _key(model: nn.Module, name: str) -> str:
    """What FlopCounterMode calls a module."""
    return f'{type(model).__name__}.{name}'.rstrip('.')


def _count(model: nn.Module, name: str, counts: Counts) -> int:
    """What was counted in a module, or in its children where these alone are called: lists, and heads with other methods."""
    if (found := counts.get(_key(model, name))) is not None:
        return sum(found.values())
    return sum(_count(model, f'{name}.{child}'.lstrip('.'), counts) for child, _ in model.get_submodule(name).named_children())
