"""The feed-forward network with a depth-wise convolution (SimViT; PVT v2, arXiv 2106.13797), in chunks.

Its hidden map is ``ratio`` times as wide as its input; written and read several times, it takes the most time after the matrix
products, and three copies of it are most of what training keeps. On a CPU it is computed in chunks of a few rows that stay in
the caches and never exists as a whole, where nothing must be kept for the backward pass or computing it again there is cheap.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 1 << 22  # of the hidden map
WORTHWHILE_BYTES = 1 << 23  # of the whole hidden map; smaller ones stay in the caches anyway
RECOMPUTED_CHANNELS = 128  # of the input; with more, computing the first layer again costs more than keeping its output
# With so few channels and so large a hidden map, computing it again is quicker than keeping it: glibc takes blocks of this size
# from the system anew each time, and where the first touch of fresh memory costs nothing the two are level.
QUICKLY_RECOMPUTED_CHANNELS = 64
QUICKLY_RECOMPUTED_BYTES = 1 << 25


def conv_ffn_in_chunks(x: Tensor, weight1: Tensor, bias1: Tensor, conv_weight: Tensor, conv_bias: Tensor, weight2: Tensor,
                       bias2: Tensor) -> Tensor:
    """``fc2(gelu(conv(fc1(x))))`` with a depth-wise 3 x 3 convolution, zero-padded; keeps ``x`` alone for the backward pass.

    Args:
        x: ``(B, H, W, C)``, float32 or float64, on the CPU.
        weight1: ``(D, C)``, of the first linear layer.
        bias1: ``(D,)``.
        conv_weight: ``(D, 1, 3, 3)``.
        conv_bias: ``(D,)``.
        weight2: ``(C', D)``, of the second linear layer.
        bias2: ``(C',)``.

    Returns:
        ``(B, H, W, C')``.
    """
    return _ConvFFN.apply(x, weight1, bias1, conv_weight, conv_bias, weight2, bias2)


_chunks_are_allowed = True


@contextmanager
def without_chunks() -> Iterator[None]:
    """Compute FFNs as on a GPU, for those who count what is kept there."""
    global _chunks_are_allowed
    before, _chunks_are_allowed = _chunks_are_allowed, False
    try:
        yield
    finally:
        _chunks_are_allowed = before


def suits_chunks(x: Tensor, weight1: Tensor, with_gradients: bool, save_memory: bool = False) -> bool:
    """Whether ``conv_ffn_in_chunks`` can run and gains time; with ``save_memory``, memory for little time.

    Args:
        x, weight1: the input, ``(B, H, W, C)``, and the weights of the first layer, ``(D, C)``.
        with_gradients: whether a backward pass will follow.
        save_memory: whether to compute the hidden map again rather than to keep it, also where that takes some time.
    """
    if (not _chunks_are_allowed or torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()
            or torch._C._are_functorch_transforms_active()):
        return False  # a trace must hold for any size
    if x.device.type != 'cpu' or x.dtype != weight1.dtype or x.dtype not in (torch.float32, torch.float64):
        return False
    if torch.is_autocast_enabled('cpu'):
        return False
    max_channels, min_bytes = x.shape[3], WORTHWHILE_BYTES
    if with_gradients and save_memory:
        max_channels = RECOMPUTED_CHANNELS
    elif with_gradients:
        max_channels, min_bytes = QUICKLY_RECOMPUTED_CHANNELS, QUICKLY_RECOMPUTED_BYTES
    return x.shape[3] <= max_channels and x.shape[:3].numel() * len(weight1) * x.element_size() >= min_bytes


class _ConvFFN(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        weight1, bias1, conv_weight, conv_bias, weight2, bias2 = parameters
        out = x.new_empty(*x.shape[:3], len(weight2))
        for image, top, bottom, hidden in _hidden_rows(x, weight1, bias1):
            hidden = F.gelu(_rows(F.conv2d(hidden, conv_weight, conv_bias, padding=(0, 1), groups=len(conv_weight))))
            torch.addmm(bias2, hidden, weight2.t(), out=out[image, top:bottom].view(-1, len(weight2)))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # the gradients are to be differentiated in turn
            # New views are variables of this graph alone, and yet connect it to theirs.
            tensors = [x.view_as(x) for x in ctx.saved_tensors]
            inputs = [x for x in tensors if x.requires_grad]
            grads = iter(torch.autograd.grad(_whole(*tensors), inputs, grad, create_graph=True))
            return tuple(next(grads) if x.requires_grad else None for x in tensors)
        x, weight1, bias1, conv_weight, conv_bias, weight2, _ = ctx.saved_tensors
        height, channels, hidden_channels = x.shape[1], x.shape[3], len(weight1)
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        grad_weight1, grad_bias1, grad_conv_weight, grad_conv_bias, grad_weight2 = (
            torch.zeros_like(p) for p in (weight1, bias1, conv_weight, conv_bias, weight2))
        handed_down = None
        for image, top, bottom, hidden in _hidden_rows(x, weight1, bias1):
            convolved = _rows(F.conv2d(hidden, conv_weight, conv_bias, padding=(0, 1), groups=hidden_channels))
            grad_rows = grad[image, top:bottom].reshape(-1, grad.shape[-1])
            grad_weight2.addmm_(grad_rows.t(), F.gelu(convolved))
            grad_convolved = torch.ops.aten.gelu_backward(grad_rows @ weight2, convolved)
            grad_hidden, part_weight, part_bias = torch.ops.aten.convolution_backward(
                grad_convolved.view(1, bottom - top, -1, hidden_channels).permute(0, 3, 1, 2), hidden, conv_weight,
                [hidden_channels], [1, 1], [0, 1], [1, 1], False, [0, 0], hidden_channels, [True, True, True])
            grad_conv_weight += part_weight
            grad_conv_bias += part_bias
            # Rows near the seam of two chunks get a share from both: the upper chunk hands its share down.
            grad_hidden = grad_hidden.permute(0, 2, 3, 1)[0]  # rows top - 1 to bottom
            if top:
                grad_hidden[:2] += handed_down
            first, done = max(top - 1, 0), height if bottom == height else bottom - 1
            grad_done = grad_hidden[first - top + 1:done - top + 1].reshape(-1, hidden_channels)
            torch.mm(grad_done, weight1, out=grad_x[image, first:done].view(-1, channels))
            grad_weight1.addmm_(grad_done.t(), x[image, first:done].reshape(-1, channels))
            grad_bias1 += grad_done.sum(0)
            handed_down = grad_hidden[-2:].clone()
        return grad_x, grad_weight1, grad_bias1, grad_conv_weight, grad_conv_bias, grad_weight2, grad.sum((0, 1, 2))


def _whole(x: Tensor, weight1: Tensor, bias1: Tensor, conv_weight: Tensor, conv_bias: Tensor, weight2: Tensor,
           bias2: Tensor) -> Tensor:
    x = F.linear(x, weight1, bias1).permute(0, 3, 1, 2)
    x = F.conv2d(x, conv_weight, conv_bias, padding=1, groups=len(conv_weight)).permute(0, 2, 3, 1)
    return F.linear(F.gelu(x), weight2, bias2)


def _hidden_rows(x: Tensor, weight1: Tensor, bias1: Tensor) -> Iterator[tuple[int, int, int, Tensor]]:
    """The hidden map of some rows at a time: (image, first row, last row + 1, ``(1, D, rows + 2, W)`` in channels last).

    It has the row above and the row below too, zeros outside of the map, and is valid until the next one.
    """
    batch, height, width, channels = x.shape
    hidden_channels = len(weight1)
    rows = max(min(CHUNK_BYTES // (width * hidden_channels * x.element_size()), height), 1)
    buffer = x.new_empty(rows + 2, width, hidden_channels)
    for image in range(batch):
        below = 0  # the first row that was not computed yet
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            if top:
                buffer[:2] = buffer[rows:].clone()
            else:
                buffer[0].zero_()
            start, end = below - top + 1, min(bottom + 1, height) - top + 1
            if end > start:
                torch.addmm(bias1, x[image, below:min(bottom + 1, height)].reshape(-1, channels), weight1.t(),
                            out=buffer[start:end].view(-1, hidden_channels))
            if bottom == height:
                buffer[height - top + 1].zero_()
            below = min(bottom + 1, height)
            yield image, top, bottom, buffer[None, :bottom - top + 2].permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """``(1, D, rows, W)`` -> ``(rows * W, D)``."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
