"""MMCV's operators, compiled and out of torchvision, and Mask R-CNN with either."""
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from ...mmcv_ops import Loader
from ...models import build_model
from .measure import Candidate

COMPILED, TORCHVISION = 'compiled', 'torchvision'


def implementations(names: list[str]) -> dict[str, ModuleType]:
    """What ``mmcv.ops`` calls, by name.

    Raises:
        ValueError: for an unknown name, or ``compiled`` where mmcv is not.
    """
    import mmcv._ext
    known = {TORCHVISION: ModuleType('mmcv._ext')}
    Loader().exec_module(known[TORCHVISION])
    if hasattr(mmcv._ext, '__file__'):
        known[COMPILED] = mmcv._ext
    elif COMPILED in names:
        raise ValueError('mmcv is not compiled here; OPS=compiled make setup makes an environment in which it is')
    if unknown := set(names) - set(known):
        raise ValueError(f"MMCV's operators do not come from {', '.join(sorted(unknown))}; known are {COMPILED}, {TORCHVISION}")
    return {name: known[name] for name in names}


def switch_to(module: ModuleType) -> None:
    """Have ``mmcv.ops`` call another implementation from now on."""
    import_module('mmcv.ops')  # what is loaded later would call the installed one
    for name, part in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(part, 'ext_module'):
            vars(part)['ext_module'] = module


def mmcv_cases(names: list[str], device: torch.device) -> Iterator[tuple[str, Callable[[], list[Candidate]]]]:
    """A title and a function that gives the candidates, for operators in sizes that detectors have, and Mask R-CNN."""
    def candidates(make: Callable[[torch.device], tuple[Callable, list[Tensor]]], can_train: bool) -> list[Candidate]:
        call, inputs = make(device)

        def with_implementation(module: ModuleType) -> object:
            switch_to(module)  # for the backward pass, too, which comes before the next candidate's turn
            return call()

        return [Candidate(name, partial(with_implementation, module), inputs, device, can_train)
                for name, module in implementations(names).items()]

    for title, make, can_train in (('nms, 2000 boxes', partial(_make_nms, name='nms'), False),
                                   ('soft_nms, 2000 boxes', partial(_make_nms, name='soft_nms'), False),
                                   ('roi_align, 512 RoIs of 2x256x200x336, 7x7', _make_roi_align, True),
                                   ('deform_conv, 2x128x50x84', partial(_make_deform_conv, modulated=False), True),
                                   ('modulated_deform_conv, 2x128x50x84', partial(_make_deform_conv, modulated=True), True),
                                   ('psamask, 2x225x16x16', _make_psa_mask, True),
                                   ('Mask R-CNN SimViT-micro, 2x512x512', _make_mask_rcnn, True)):
        yield title, partial(candidates, make, can_train)


def _random_boxes(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Boxes in an image of 1344 x 800, and their scores."""
    corner = torch.rand(count, 2) * torch.tensor([1200, 700])
    return torch.cat([corner, corner + 8 + 200 * torch.rand(count, 2)], 1).to(device), torch.rand(count, device=device)


def _make_nms(device: torch.device, name: str) -> tuple[Callable, list[Tensor]]:
    from mmcv import ops
    boxes, scores = _random_boxes(2000, device)
    return lambda: getattr(ops, name)(boxes, scores, 0.7 if name == 'nms' else 0.3), []


def _make_roi_align(device: torch.device) -> tuple[Callable, list[Tensor]]:
    from mmcv import ops
    x = torch.randn(2, 256, 200, 336, device=device, requires_grad=True)
    rois = torch.cat([torch.arange(512, device=device)[:, None] % 2, _random_boxes(512, device)[0]], 1)
    return lambda: ops.roi_align(x, rois, 7, 0.25, 0, 'avg', True), [x]


def _make_deform_conv(device: torch.device, modulated: bool) -> tuple[Callable, list[Tensor]]:
    from mmcv import ops
    sizes = (2, 128, 50, 84), (2, 18, 50, 84), *([(2, 9, 50, 84)] if modulated else []), (128, 128, 3, 3)
    inputs = [torch.randn(*size, device=device, requires_grad=True) for size in sizes]
    if modulated:
        return lambda: ops.modulated_deform_conv2d(*inputs, None, 1, 1), inputs
    return lambda: ops.deform_conv2d(*inputs, 1, 1), inputs


def _make_psa_mask(device: torch.device) -> tuple[Callable, list[Tensor]]:
    from mmcv import ops
    x = torch.randn(2, 15 * 15, 16, 16, device=device, requires_grad=True)
    return lambda: ops.psa_mask.psa_mask(x, 0, (15, 15)), [x]


def _make_mask_rcnn(device: torch.device) -> tuple[Callable, list[Tensor]]:
    """Predictions of two images without gradients, the loss of them with."""
    from mmdet.testing import demo_mm_inputs
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    model = build_model('maskrcnn_simvit_micro_shapes').to(device)
    data = demo_mm_inputs(2, [[3, 512, 512]] * 2, num_classes=3, with_mask=True)

    def call() -> object:
        is_training = torch.is_grad_enabled()
        model.train(is_training)
        out = model(**model.data_preprocessor(data, is_training), mode='loss' if is_training else 'predict')
        return model.parse_losses(out)[0] if is_training else out

    return call, [*model.parameters()]
