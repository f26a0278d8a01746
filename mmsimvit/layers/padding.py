"""Padding of maps with zeros at the bottom and right, and places in them, in forms that a trace can follow for any size."""
import torch
import torch.nn.functional as F
from torch import Tensor


def pad_for_patches(x: Tensor, size: int) -> Tensor:
    """``(B, C, H, W)`` with so many zeros that non-overlapping patches of ``size`` miss no pixel.

    Patches that would lie in the padding alone do not fit, so that a convolution gives ``ceil(H / size)`` rows.
    """
    # A traced graph must hold for sizes on both sides of this branch; eager is spared the copy where it can be.
    if torch.compiler.is_compiling() or x.shape[2] % size or x.shape[3] % size:
        return F.pad(x, (0, size - 1, 0, size - 1))
    return x


def split_into_patches(x: Tensor, size: int) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, C, ceil(H / size), ceil(W / size), size, size)``."""
    x = pad_for_patches(x, size) if torch.compiler.is_compiling() else pad_to_multiple(x, size)
    return x.unfold(2, size, size).unfold(3, size, size)


def pad_to_multiple(x: Tensor, size: int) -> Tensor:
    """``(B, C, H, W)`` with zeros up to multiples of ``size``."""
    height, width = ((length + size - 1) // size * size for length in x.shape[2:])
    if torch.compiler.is_compiling():
        return crop(F.pad(x, (0, size - 1, 0, size - 1)), height, width)
    if (height, width) != x.shape[2:]:
        return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
    return x


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns of ``(B, C, H, W)``."""
    if torch.compiler.is_compiling():  # a slice would have the trace ask which of the lengths is larger
        for dim, length in ((2, height), (3, width)):
            x = x.index_select(dim, torch.arange(length, device=x.device))
        return x
    return x[:, :, :height, :width]


def divide(index: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of whole numbers, in the shape of ``index``, also where a trace has a symbol for the divisor."""
    divisors = torch.full_like(index, divisor)
    quotient = torch.div(index, divisors, rounding_mode='floor')
    return quotient, index - quotient * divisors
