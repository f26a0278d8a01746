"""What several operators need."""
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Parameters = ParamSpec('Parameters')
Result = TypeVar('Result')


def without_autocast(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function in which autocast narrows nothing: MMCV's functions call operators while it is on."""
    @wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with torch.autocast('cpu', enabled=False), torch.autocast('cuda', enabled=False):
            return function(*args, **kwargs)
    return wrapped


def widen(x: Tensor) -> Tensor:
    """Numbers of 16 bits as float32, all else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a composition of torch's functions, which is computed once more for them.

    MMCV runs operators and their backward passes without autograd; between the two it keeps their inputs alone.
    """
    with torch.enable_grad():
        leaves = [widen(x.detach()).requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, widen(grad_output))


def split_finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """What may serve as places in a map, and zeros that are NaN where it may not.

    torchvision takes NaN as the index of a pixel, which ends the process. The zeros are added to what comes out.
    """
    return x.nan_to_num(0, 0, 0), x * 0
