"""Depth-wise convolution with kernels of its own at every position (2106.04263, "inhomogeneous dynamic" there).

It is also known as involution (2103.06255). Its published implementation is a CUDA kernel compiled at run time; unfolding the
map is the usual way around it, with ``kernel_size ** 2`` copies. Here nothing is unfolded: each tap is a shifted view.
"""
from collections.abc import Callable, Iterator, Sequence
from math import isqrt, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .backends import is_exporting

CHUNK_BYTES = 1 << 20  # of the map, on a CPU: a chunk stays in the caches while all taps go over it


def inhomogeneous_conv(x: Tensor, kernels: Tensor, group_size: int) -> Tensor:
    """Weigh the window around each pixel by that pixel's kernel; what lies outside of the map counts as zero.

    Args:
        x: ``(B, C, H, W)``, floating-point.
        kernels: ``(B, C / group_size * k * k, H, W)`` with odd ``k``; channel ``g * k * k + k * i + j`` holds the weights of
            tap (i, j) for the channels from ``g * group_size`` on.
        group_size: how many consecutive channels share a kernel; divides C.

    Returns:
        ``(B, C, H, W)``, in the dtype of ``x``, summed in float32 at least. Its memory and that of the backward pass are a
        few times the map's beside that of the kernels, on a CPU less. (Graphs of ``torch.export`` unfold, and sum in the
        dtype.)

    Raises:
        ValueError: for shapes that do not fit.
    """
    groups = _check(x, kernels, group_size)
    kernels = kernels.to(x.dtype)
    if is_exporting() or (not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()):
        return _composite(x, kernels, groups)
    return _inhomogeneous_conv(x, kernels, groups)


def _check(x: Tensor, kernels: Tensor, group_size: int) -> int:
    """Refuse what is not computed; give the number of groups."""
    if x.dim() != 4 or group_size < 1 or x.shape[1] % group_size:
        raise ValueError(f'x must be (B, C, H, W) with C a multiple of group_size, got {tuple(x.shape)} and {group_size}')
    groups = x.shape[1] // group_size
    taps = kernels.shape[1] // groups if kernels.dim() == 4 else 0
    size = isqrt(taps)
    if (kernels.dim() != 4 or kernels.shape[:1] + kernels.shape[2:] != x.shape[:1] + x.shape[2:]
            or kernels.shape[1] != groups * size**2 or size % 2 == 0):
        raise ValueError(f'kernels for {groups} groups of {group_size} channels of an x of {tuple(x.shape)} must be '
                         f'({x.shape[0]}, {groups} * k * k, {x.shape[2]}, {x.shape[3]}) with odd k, got {tuple(kernels.shape)}')
    return groups


# One opaque operator: autograd keeps the map and the kernels alone, and what counts operations finds it.
@torch.library.custom_op('mmsimvit::inhomogeneous_conv', mutates_args=(),
                         schema='(Tensor x, Tensor kernels, int groups) -> Tensor')
def _inhomogeneous_conv(x: Tensor, kernels: Tensor, groups: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for part, padded, weights in _chunks(x, kernels, groups):
        total = padded.new_zeros(part(out).shape)
        for tap, window in _windows(padded, weights):
            total.addcmul_(window, weights[:, tap, None].to(total.dtype))
        part(out).copy_(total)
    return out


@torch.library.custom_op('mmsimvit::inhomogeneous_conv_backward', mutates_args=(),
                         schema='(Tensor grad, Tensor x, Tensor kernels, int groups) -> Tensor[]')
def _inhomogeneous_conv_backward(grad: Tensor, x: Tensor, kernels: Tensor, groups: int) -> list[Tensor]:
    grad = grad.contiguous()
    grad_x, grad_kernels = (torch.empty_like(y, memory_format=torch.contiguous_format) for y in (x, kernels))
    for part, padded, weights in _chunks(x, kernels, groups):
        grad_out, grad_padded = part(grad).to(padded.dtype), torch.zeros_like(padded)
        windows = _windows(padded, weights)
        for (tap, window), (_, grad_window) in zip(windows, _windows(grad_padded, weights)):
            grad_window.addcmul_(grad_out, weights[:, tap, None].to(padded.dtype))
            part(grad_kernels)[:, tap] = (grad_out * window).sum(1)
        reach = isqrt(weights.shape[1]) // 2
        part(grad_x).copy_(F.pad(grad_padded, (-reach, ) * 4))
    return [grad_x, grad_kernels]


def _chunks(x: Tensor, kernels: Tensor, groups: int) -> Iterator[tuple[Callable[[Tensor], Tensor], Tensor, Tensor]]:
    """Some groups at a time: a function that gives their ``(groups, channels, H, W)`` of a tensor, the padded map and the
    kernels."""
    x, kernels = x.contiguous(), kernels.contiguous()
    count = x.shape[0] * groups
    step = count
    if x.device.type == 'cpu':
        step = max(CHUNK_BYTES * count // max(x.numel() * x.element_size(), 1), 1)
    for start in range(0, count, step):
        def part(y: Tensor, start: int = start) -> Tensor:
            return y.view(count, -1, *y.shape[2:])[start:start + step]
        weights = part(kernels)
        reach = isqrt(weights.shape[1]) // 2
        dtype = torch.promote_types(x.dtype, torch.float32)
        yield part, F.pad(part(x).to(dtype), (reach, ) * 4), weights


def _windows(padded: Tensor, weights: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each tap's number and its shifted view of the map."""
    size = isqrt(weights.shape[1])
    for tap in range(size**2):
        row, column = divmod(tap, size)
        yield tap, padded[:, :, row:row + weights.shape[2], column:column + weights.shape[3]]


def _composite(x: Tensor, kernels: Tensor, groups: int) -> Tensor:
    """The same by differentiable operations, with every tap's copy of the map."""
    size = isqrt(kernels.shape[1] // groups)
    windows = F.unfold(x, size, padding=size // 2).unflatten(1, (groups, -1, size**2))  # (B, groups, channels, taps, H * W)
    kernels = kernels.flatten(2).unflatten(1, (groups, 1, size**2))
    return (windows * kernels).sum(3).flatten(1, 2).unflatten(2, x.shape[2:])


@_inhomogeneous_conv.register_fake
def _(x: Tensor, kernels: Tensor, groups: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_inhomogeneous_conv_backward.register_fake
def _(grad: Tensor, x: Tensor, kernels: Tensor, groups: int) -> list[Tensor]:
    return [torch.empty_like(y, memory_format=torch.contiguous_format) for y in (x, kernels)]


@register_flop_formula(torch.ops.mmsimvit.inhomogeneous_conv)
def _flops(x: torch.Size, kernels: torch.Size, groups: int, **_: object) -> int:
    return 2 * prod(x) * (kernels[1] // groups)


@register_flop_formula(torch.ops.mmsimvit.inhomogeneous_conv_backward)
def _backward_flops(grad: torch.Size, *forward: Any, **_: object) -> int:
    return 2 * _flops(*forward)  # gradients of map and kernels


def _save(ctx: Any, inputs: tuple, output: Tensor | list[Tensor]) -> None:
    *tensors, ctx.groups = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_inhomogeneous_conv_backward(grad, *ctx.saved_tensors, ctx.groups), None


def _double_backward(ctx: Any, grads_of_grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    with torch.enable_grad():
        # New views are variables of this graph alone, and yet connect it to theirs.
        grad, x, kernels = tensors = [y.view_as(y) if y.requires_grad else y.detach().requires_grad_()
                                      for y in ctx.saved_tensors]
        out = _composite(x, kernels, ctx.groups)
        grads = torch.autograd.grad(out, (x, kernels), grad, create_graph=True)
    return *torch.autograd.grad(grads, tensors, grads_of_grads, create_graph=torch.is_grad_enabled()), None


_inhomogeneous_conv.register_autograd(_backward, setup_context=_save)
_inhomogeneous_conv_backward.register_autograd(_double_backward, setup_context=_save)
