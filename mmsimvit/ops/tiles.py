"""Neighborhood attention in plain PyTorch by dense products of tiles, which saves nothing.

A tile of queries meets all the keys that any of its queries sees; what lies outside of a query's window is masked. Two windows
of 7 x 7 pixels share so many keys that this takes less time than to shift the map under one position of the window after the
other. Tiles alike in their windows are computed together, in chunks that stay in the caches.
"""
from collections.abc import Iterator
from itertools import groupby, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 8  # pixels along a side, at least: of 6 to 16, the fastest for windows of 7 x 7
CHUNK_BYTES, DEVICE_CHUNK_BYTES = 1 << 20, 1 << 28  # of the logits; elsewhere than on a CPU chunks only limit memory


def forward(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, kernel_size: int,
            scale: float) -> Tensor:
    """Three times ``(B, H, W, C)`` -> ``(B, H, W, C)``, contiguous."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for tiles in _chunks(query, bias, num_heads, kernel_size):
        q, k, v = _load(tiles.queries(query)).mul_(scale), _load(tiles.keys(key)), _load(tiles.keys(value))
        _store(tiles.weights(q, k) @ v, tiles.queries(out))
    return out


def backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, kernel_size: int,
             scale: float, grad_query: Tensor, grad_key: Tensor, grad_value: Tensor, grad_bias: Tensor | None) -> None:
    """Write the gradients of query, key and value, ``(B, H, W, C)``, and of the bias into the last four."""
    wide = torch.promote_types(query.dtype, torch.float32)
    sum_key, sum_value = (torch.zeros_like(x, dtype=wide, memory_format=torch.contiguous_format) for x in (key, value))
    sum_bias = query.new_zeros(num_heads, (2 * kernel_size)**2, dtype=wide)
    for tiles in _chunks(query, bias, num_heads, kernel_size):
        q, k, v = _load(tiles.queries(query)).mul_(scale), _load(tiles.keys(key)), _load(tiles.keys(value))
        g, weights = _load(tiles.queries(grad)), tiles.weights(q, k)
        tiles.add(weights.mT @ g, sum_value)
        grad_logits = torch.ops.aten._softmax_backward_data(g @ v.mT, weights, -1, wide)
        tiles.add(grad_logits.mT @ q, sum_key)  # the query in it was scaled already
        _store((grad_logits @ k).mul_(scale), tiles.queries(grad_query))
        if grad_bias is not None:
            sum_bias.index_add_(1, tiles.places.flatten(), grad_logits.sum((0, 1, 2)).flatten(1))
    grad_key.copy_(sum_key)
    grad_value.copy_(sum_value)
    if grad_bias is not None:
        grad_bias.copy_(sum_bias.unflatten(1, (2 * kernel_size, -1))[:, :-1, :-1])


def _load(tiles: Tensor) -> Tensor:
    """(..., rows, columns, C / heads) -> (..., pixels, C / heads), a copy, in float32 at least."""
    wide = torch.promote_types(tiles.dtype, torch.float32)
    return tiles.to(wide, memory_format=torch.contiguous_format, copy=True).flatten(-3, -2)


def _store(pixels: Tensor, tiles: Tensor) -> None:
    tiles.copy_(pixels.view(tiles.shape))


class _Run(NamedTuple):
    """Tiles one after the other along a side of the map, with the same windows seen from each."""
    start: int  # first query
    length: int  # queries of a tile
    first: int  # first key
    extent: int  # keys of a tile
    step: int  # from tile to tile
    tiles: int  # how many
    places: Tensor  # (length, extent), key - query + kernel_size - 1, or 2 * kernel_size - 1 outside of the window

    def part(self, start: int, count: int) -> '_Run':
        """Some of its tiles."""
        return self._replace(start=self.start + start * self.step, first=self.first + start * self.step,
                             tiles=min(count, self.tiles - start))


def _runs(size: int, kernel_size: int, device: torch.device) -> list[_Run]:
    """The tiles along a side of the map."""
    step = max(TILE, kernel_size - 1)  # the keys of a tile and of the next but one are others
    firsts = [min(max(pixel - kernel_size // 2, 0), size - kernel_size) for pixel in range(size)]
    tiles = [(start, [first - start for first in firsts[start:start + step]]) for start in range(0, size, step)]
    runs = []
    for windows, run in groupby(tiles, lambda tile: tile[1]):
        start, *others = (tile[0] for tile in run)
        extent = windows[-1] + kernel_size - windows[0]
        queries, keys = torch.arange(len(windows))[:, None], windows[0] + torch.arange(extent)
        begins = torch.tensor(windows)[:, None]
        inside = (keys >= begins) & (keys < begins + kernel_size)
        places = torch.where(inside, keys - queries + kernel_size - 1, 2 * kernel_size - 1).to(device)
        runs.append(_Run(start, len(windows), start + windows[0], extent, step, 1 + len(others), places))
    return runs


class _Tiles(NamedTuple):
    """Some tiles of some images; their views are ``(images, tile rows, tile columns, heads, rows, columns, C / heads)``."""
    images: slice
    rows: _Run
    columns: _Run
    num_heads: int
    places: Tensor  # (queries, keys), in the bias, whose sides are one longer
    mask: Tensor  # (heads or 1, queries, keys): the bias, or minus infinity

    def queries(self, x: Tensor) -> Tensor:
        y, x_ = (slice(run.start, run.start + run.tiles * run.length) for run in (self.rows, self.columns))
        x = x[self.images, y, x_].unflatten(3, (self.num_heads, -1))
        return (x.unflatten(2, (-1, self.columns.length)).unflatten(1, (-1, self.rows.length))
                .permute(0, 1, 3, 5, 2, 4, 6))

    def keys(self, x: Tensor, first: tuple[int, int] = (0, 0), every: int = 1) -> Tensor:
        """Those of all tiles, which overlap, or of every second one."""
        x = x[self.images].unflatten(3, (self.num_heads, -1))
        for dim, run, skipped in zip((1, 2), (self.rows, self.columns), first):
            start, step = run.first + skipped * run.step, every * run.step
            x = x.narrow(dim, start, (run.tiles - skipped - 1) // every * step + run.extent).unfold(dim, run.extent, step)
        return x.permute(0, 1, 2, 3, 5, 6, 4)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Of all keys of a tile for each of its queries."""
        return (q @ k.mT).add_(self.mask).softmax(-1)

    def add(self, pixels: Tensor, total: Tensor) -> None:
        """Sum what belongs to keys; those of every second tile do not overlap."""
        for i, j in product(range(min(self.rows.tiles, 2)), range(min(self.columns.tiles, 2))):
            every_second = self.keys(total, (i, j), 2)
            every_second += pixels[:, i::2, j::2].reshape(every_second.shape)


def _chunks(query: Tensor, bias: Tensor | None, num_heads: int, kernel_size: int) -> Iterator[_Tiles]:
    wide = torch.promote_types(query.dtype, torch.float32)
    side = 2 * kernel_size
    table = query.new_zeros(1, side - 1, side - 1) if bias is None else bias
    table = F.pad(table.to(wide), (0, 1, 0, 1), value=float('-inf')).flatten(1)
    limit = CHUNK_BYTES if query.device.type == 'cpu' else DEVICE_CHUNK_BYTES
    down, right = (_runs(size, kernel_size, query.device) for size in query.shape[1:3])
    for rows, columns in product(down, right):
        places = (side * rows.places[:, None, :, None] + columns.places[None, :, None, :]).flatten(2).flatten(0, 1)
        mask = table[:, places]
        count = max(limit // (4 * num_heads * places.numel()), 1)  # tiles at once
        width = min(count, columns.tiles)
        height = min(count // width, rows.tiles)
        images = max(count // (width * height), 1)
        for image, y, x in product(range(0, len(query), images), range(0, rows.tiles, height),
                                   range(0, columns.tiles, width)):
            yield _Tiles(slice(image, image + images), rows.part(y, height), columns.part(x, width), num_heads, places, mask)
