from math import isqrt
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .padding import divide


class RelativePositionBias(nn.Module):
    """A learned bias of attention for each head and each displacement between two positions of a grid (Swin, 2103.14030,
    section 3.2).

    The table's rows are the displacements, row-major, from ``-(n - 1)`` to ``n - 1`` in both directions. It serves grids of
    other sizes, and checkpoints whose table has another size are loaded, after bicubic resampling.

    Args:
        grid: ``n``, height and width of the grid that the table is for.
        num_heads: attention heads.
        std: the deviation of the initial table.
    """

    def __init__(self, grid: int, num_heads: int, std: float = 0.02):
        super().__init__()
        self.std = std
        self.table = nn.Parameter(torch.empty((2 * grid - 1)**2, num_heads))
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(fit_loaded)

    def reset_parameters(self) -> None:
        """Draw the table from a normal distribution."""
        nn.init.trunc_normal_(self.table, std=self.std)

    def forward(self, height: int, width: int) -> Tensor:
        """The bias ``(num_heads, height * width, height * width)`` of queries (second) and keys (third dimension)."""
        if not torch.compiler.is_compiling():
            return spread_rows(self.spread_columns(height, width), height, height, width)
        table = resample_table(self.table, 2 * height - 1, 2 * width - 1)
        row, column = divide(torch.arange(height * width, device=table.device), width)
        return table[:, row[:, None] - row + (height - 1), column[:, None] - column + (width - 1)]

    def spread_columns(self, height: int, width: int) -> Tensor:
        """The bias by displacement of rows, column of the query and column of the key:
        ``(num_heads, 2 * height - 1, width * width)``. For maps whose whole bias is too large, see ``spread_rows``."""
        table = resample_table(self.table, 2 * height - 1, 2 * width - 1)
        return table.index_select(2, displacements(width, width, table.device).flatten())

    def fit_state_dict(self, state_dict: dict, prefix: str) -> None:
        """Resample, in place of the entry, a table that was learned for another grid."""
        table = state_dict.get(f'{prefix}table')
        size = isqrt(len(self.table))
        if not isinstance(table, Tensor) or not table.is_floating_point() or table.dim() != 2 or len(table) == len(self.table):
            return
        if isqrt(len(table))**2 == len(table) > 0:
            state_dict[f'{prefix}table'] = resample_table(table, size, size).flatten(1).t().contiguous()


class _Fitting(Protocol):

    def fit_state_dict(self, state_dict: dict, prefix: str) -> None: ...


def fit_loaded(module: _Fitting, state_dict: dict, prefix: str, *_: object) -> None:
    """A hook before loading, for modules with ``fit_state_dict``."""
    module.fit_state_dict(state_dict, prefix)


def spread_rows(columns: Tensor, count: int, height: int, width: int) -> Tensor:
    """The bias ``(num_heads, count * width, height * width)`` of the queries in some rows, from what
    ``RelativePositionBias.spread_columns`` gives for their displacements: rows ``[first, first + count + height - 1)``."""
    rows = columns.index_select(1, displacements(count, height, columns.device).flatten())
    rows = rows.unflatten(1, (count, height)).unflatten(3, (width, width)).transpose(2, 3)
    return rows.reshape(-1, count * width, height * width)


def displacements(queries: int, keys: int, device: torch.device) -> Tensor:
    """How far each query lies behind each key, ``(queries, keys)``, counted from ``-(keys - 1)`` as 0."""
    return torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device) + (keys - 1)


def resample_table(table: Tensor, height: int, width: int) -> Tensor:
    """``(n * n, heads)`` -> ``(heads, height, width)``, bicubic (a = -0.75, without antialiasing)."""
    table = table.t().unflatten(1, (isqrt(len(table)), -1))
    if isinstance(height, int) and table.shape[1:] == (height, width):  # not a symbol, which would be fixed by comparing it
        return table
    return F.interpolate(table[None], size=(height, width), mode='bicubic', align_corners=False)[0]
