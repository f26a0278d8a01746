"""Learned positions of a whole map."""
from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .position_bias import fit_loaded


class PositionTable(nn.Module):
    """A learned vector for each position of a grid, row by row, resized to other grids.

    Args:
        dims: channels.
        grid: height and width.
        mode: of resizing, ``bilinear`` or ``bicubic``.
    """

    def __init__(self, dims: int, grid: Sequence[int], mode: str = 'bilinear'):
        super().__init__()
        self.grid = grid
        self.mode = mode
        self.table = nn.Parameter(torch.empty(1, grid[0] * grid[1], dims))
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(fit_loaded)

    def reset_parameters(self) -> None:
        """Draw the vectors from a normal distribution with a deviation of 0.02."""
        nn.init.normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        return x + resize_table(self.table, self.grid, x.shape[1:3], self.mode).permute(0, 2, 3, 1).to(x.dtype)

    def fit_state_dict(self, state_dict: dict, prefix: str) -> None:
        """Resize, in place of the entry, a table of another grid, which must be a square."""
        table = state_dict.get(f'{prefix}table')
        if not isinstance(table, Tensor) or not table.is_floating_point() or table.dim() != 3:
            return
        side = isqrt(table.shape[1])
        if table.shape[1] != self.table.shape[1] and side**2 == table.shape[1] > 0:
            table = resize_table(table, (side, side), self.grid, self.mode)
            state_dict[f'{prefix}table'] = table.flatten(2).transpose(1, 2).contiguous()


def resize_table(table: Tensor, grid: Sequence[int], size: Sequence[int], mode: str) -> Tensor:
    """``(1, h * w, C)``, where ``grid`` is (h, w) -> ``(1, C, *size)``."""
    return resize(table.transpose(1, 2).unflatten(2, tuple(grid)), size, mode)


def resize(x: Tensor, size: Sequence[int], mode: str = 'bilinear') -> Tensor:
    """``(B, C, h, w)`` -> ``(B, C, *size)``, with half-pixel centres, without antialiasing."""
    if not torch.compiler.is_compiling() and x.shape[2:] == tuple(size):  # comparing would fix a symbol
        return x
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=False)
