"""Maps cut into windows and put together again, in forms that a trace can follow for any size.

A window of ``(None, w)`` is a vertical stripe over the whole height, one of ``(h, None)`` a horizontal one over the width.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .padding import divide

WindowSize = Sequence[int | None]


def split_into_windows(x: Tensor, size: WindowSize, centred: bool = False) -> Tensor:
    """``(B, H, W, C)`` -> ``(B * windows, h * w, C)``, windows and what is in them row by row.

    Args:
        x: the map, which is padded with zeros to whole windows.
        size: height and width of a window, each None for all of the map's.
        centred: whether the zeros lie on all sides, where their number is odd one more at the bottom and right; or else at
            the bottom and right alone.
    """
    (height, width), (rows, columns) = _window_size(x.shape[1:3], size), _count(x.shape[1:3], size)
    top, left = _offsets(x.shape[1:3], size, centred)
    if not torch.compiler.is_compiling():
        bottom, right = rows * height - x.shape[1] - top, columns * width - x.shape[2] - left
        if top or left or bottom or right:
            x = F.pad(x, (0, 0, left, right, top, bottom))
        return x.unflatten(1, (rows, height)).unflatten(3, (columns, width)).transpose(2, 3).flatten(0, 2).flatten(1, 2)
    # Rearranging dimensions, a trace would distinguish whether there is one window or several. So it picks them by index, and
    # always one more than there are, from padding below. That on the other sides is the most that can be needed, for a trace
    # would ask how much it is.
    above, before = (part - 1 if centred and part is not None else 0 for part in size)
    x = F.pad(x, (0, 0, before, width - 1, above, 2 * height - 1))
    # What is in them is picked by one index too: to flatten two dimensions, a trace compares their lengths.
    window, pixel = (torch.arange(number, device=x.device) for number in (rows * columns + 1, height * width))
    (row, column), inside = divide(window, columns), divide(pixel, width)
    row = (row * height + (above - top))[:, None] + inside[0]
    column = (column * width + (before - left))[:, None] + inside[1]
    return x[:, row, column].flatten(0, 1)


def merge_windows(x: Tensor, size: WindowSize, batch: int, height: int, width: int, centred: bool = False) -> Tensor:
    """``(B * windows, h * w, C)`` or ``(B * windows, h, w, C)`` -> ``(B, H, W, C)``, without the padding.

    Args:
        x: what ``split_into_windows`` gives.
        size, centred: as there.
        batch, height, width: B, H and W.
    """
    (rows, columns), (top, left) = _count((height, width), size), _offsets((height, width), size, centred)
    size = _window_size((height, width), size)
    if not torch.compiler.is_compiling():
        x = x.view(batch, rows, columns, *size, x.shape[-1]).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, top:top + height, left:left + width]
    row = divide(torch.arange(height, device=x.device) + top, size[0])
    column = divide(torch.arange(width, device=x.device) + left, size[1])
    x = x.unflatten(1, size) if x.dim() == 3 else x
    return x.unflatten(0, (batch, -1))[:, row[0][:, None] * columns + column[0], row[1][:, None], column[1]]


def mask_padding(x: Tensor, window_size: int) -> Tensor | None:
    """Which pixels of the windows of ``(B, H, W, C)`` lie in the map, ``(B * windows, 1, 1, window_size ** 2)``; None if all
    do."""
    if not torch.compiler.is_compiling() and x.shape[1] % window_size == 0 == x.shape[2] % window_size:
        return None
    inside = split_into_windows(torch.ones_like(x[..., :1]), (window_size, window_size))[:, None, None, :, 0]
    # The first of a window always does, but in the one that a trace cuts too many, whose softmax shall be finite.
    return inside.bool() | (torch.arange(window_size**2, device=x.device) == 0)


def _window_size(shape: Sequence[int], size: WindowSize) -> tuple[int, int]:
    height, width = (length if part is None else part for length, part in zip(shape, size))
    return height, width


def _count(shape: Sequence[int], size: WindowSize) -> tuple[int, int]:
    """How many windows there are in a column, and in a row."""
    rows, columns = (1 if part is None else (length + part - 1) // part for length, part in zip(shape, size))
    return rows, columns


def _offsets(shape: Sequence[int], size: WindowSize, centred: bool) -> tuple[int, int]:
    """The zeros at the top, and at the left."""
    if not centred:
        return 0, 0
    parts = zip(shape, _window_size(shape, size), _count(shape, size))
    top, left = ((number * part - length) // 2 for length, part, number in parts)
    return top, left
