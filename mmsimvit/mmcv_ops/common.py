"""What several operators need."""
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from ..ops.finite import widen

Parameters = ParamSpec('Parameters')
Result = TypeVar('Result')


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


def once(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A backward pass whose gradients are not to be differentiated in turn, for which they would be constants.

    MMCV marks most of its functions so, but not CARAFE, PSAMask and the focal loss of softmax.

    Raises:
        RuntimeError: in such a case.
    """
    @wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if torch.is_grad_enabled():
            raise RuntimeError(f"MMCV's operator {function.__name__} has no second derivatives; leave out create_graph=True, "
                               'or the part of the model that needs it')
        return function(*args, **kwargs)
    return wrapped


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
