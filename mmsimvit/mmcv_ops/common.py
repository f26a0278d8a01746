"""What several operators need."""
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Parameters = ParamSpec('Parameters')
Result = TypeVar('Result')
FAR = 1e6  # pixels or maps, beyond all of them


def as_a_kernel(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function that torch's modes do not change, as they do not change a compiled operator.

    MMCV's functions call operators under autocast, which would narrow products. In deterministic mode torch refuses parts of
    the backward passes on CUDA devices, where compiled MMCV adds in any order, too.
    """
    @wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        is_deterministic = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(False)
        try:
            with torch.autocast('cpu', enabled=False), torch.autocast('cuda', enabled=False):
                return function(*args, **kwargs)
        finally:
            torch.use_deterministic_algorithms(is_deterministic, warn_only=warns)
    return wrapped


def widen(x: Tensor) -> Tensor:
    """Numbers of 16 bits as float32, all else as it is, in any shape."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a composition of torch's functions, which is computed once more for them, in the shapes of its inputs.

    MMCV runs operators and their backward passes without autograd; between the two it keeps their inputs alone.
    """
    with torch.enable_grad():
        leaves = [widen(x.detach()).requires_grad_() for x in inputs]
        out = function(*leaves)
        if not out.requires_grad:  # nothing was sampled
            return tuple(map(torch.zeros_like, leaves))
        return torch.autograd.grad(out, leaves, widen(grad_output))


def split_finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """Places in a map with which torchvision computes, of 32 bits or more, and zeros that are NaN where the places are, in the
    shape of what is given.

    torchvision takes NaN as the index of a pixel, which ends the process. The zeros are added to what comes out. What is
    infinite lies far outside.
    """
    x = widen(x)
    return x.nan_to_num(0).clamp(-FAR, FAR), torch.where(x.isnan(), x, 0)
