"""Multi-scale deformable attention (Zhu et al., ICLR 2021, arXiv 2010.04159).

MMCV's compiled operator needs a compiler, and its plain form a copy of every sample. Here each output is one weighted sum of
rows of values, and what the backward pass needs beside the inputs is computed again.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .finite import FAR, widen


def deformable_attention(value: Tensor, shapes: Sequence[tuple[int, int]], places: Tensor, weights: Tensor) -> Tensor:
    """Each query's weighted sum of values, interpolated bilinearly at its places; what lies outside of a map is zero.

    Args:
        value: ``(B, keys, heads, C)``, the pixels of all levels' maps one after the other, row by row.
        shapes: height and width of each level's map.
        places: ``(B, queries, heads, levels, points, 2)``, x and y in pixels of the level's map, 0 in the middle of the first.
        weights: ``(B, queries, heads, levels, points)``.

    Returns:
        ``(B, queries, heads * C)``, in the dtype of ``value``, summed in float32 at least; NaN where a place is.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return checkpoint(_attend, value, shapes, places, weights, use_reentrant=False, preserve_rng_state=False)
    return _attend(value, shapes, places, weights)


def _attend(value: Tensor, shapes: Sequence[tuple[int, int]], places: Tensor, weights: Tensor) -> Tensor:
    dtype, (batch, keys, heads, channels), queries = value.dtype, value.shape, places.shape[1]
    value, weights, places = widen(value), widen(weights), widen(places).clamp(-FAR, FAR)
    indices, factors, start = [], [], 0
    for level, (height, width) in enumerate(shapes):
        column, of_columns = _neighbours(places[:, :, :, level, :, 0], width)
        row, of_rows = _neighbours(places[:, :, :, level, :, 1], height)
        indices.append(row[..., :, None] * width + column[..., None, :] + start)
        factors.append(of_rows[..., :, None] * of_columns[..., None, :])
        start += height * width
    # The row of a table that has the heads of a pixel side by side, as they are in memory.
    image, head = (torch.arange(length, device=value.device, dtype=torch.int32) for length in (batch, heads))
    index = torch.stack(indices, 3) + (image * keys)[:, None, None, None, None, None, None]
    index = (index * heads + head[:, None, None, None, None]).flatten(3).flatten(0, 2)
    factor = (torch.stack(factors, 3) * weights[..., None, None]).flatten(3).flatten(0, 2)
    table = value.reshape(-1, channels)
    if torch.compiler.is_compiling():  # for what has no such sum
        out = (factor[:, None] @ F.embedding(index, table))[:, 0]
    else:
        out = F.embedding_bag(index, table, mode='sum', per_sample_weights=factor)
    return out.view(batch, queries, heads * channels).to(dtype)


def _neighbours(place: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two pixels around each place on one axis, as whole numbers inside of the map, and their factors, zero for those
    outside; both with another dimension in the end."""
    first = place.floor()
    after = place - first
    pixel = torch.stack([first, first + 1], -1)
    factor = torch.stack([1 - after, after], -1) * ((pixel >= 0) & (pixel < length))
    return pixel.nan_to_num(0).clamp(0, length - 1).to(torch.int32), factor
