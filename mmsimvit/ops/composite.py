"""Central attention composed of differentiable operations, for what the operator does not do.

Two forms of the same numbers. In tiles, every tile of queries is multiplied with all the keys that any of its queries sees, and
the dot products outside of a query's window are masked: few matrix products and copies, which suit a GPU. In shifts, the whole
map meets itself moved by one position of the window after the other: for tracing, since it holds for any size without a guard,
compilers fuse it, and ONNX has it. In tiles, a number that is not finite spoils all windows of its tile.
"""
import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, kernel_size: int, scale: float,
              dropout_p: float, shifted: bool) -> Tensor:
    """Three times ``(B, H, W, C)`` -> ``(B, H, W, C)``, as ``mmsimvit.ops.neighborhood_attention``."""
    if shifted:
        return _in_rows(query, key, value, bias, num_heads, kernel_size, scale, dropout_p).to(query.dtype)
    traced = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()
    out = (_in_shifts if traced else _in_tiles)(query, key, value, num_heads, kernel_size, scale, dropout_p)
    return out.to(query.dtype)  # autocast computes sums in float32


def _in_shifts(query: Tensor, key: Tensor, value: Tensor, num_heads: int, kernel_size: int, scale: float,
               dropout_p: float) -> Tensor:
    reach = kernel_size // 2
    height, width, channels = query.shape[1:]
    query = (query * scale).unflatten(-1, (num_heads, channels // num_heads))
    key, value = (F.pad(x, (0, 0, reach, reach, reach, reach)).unflatten(-1, (num_heads, channels // num_heads))
                  for x in (key, value))
    window = [(slice(None), slice(top, top + height), slice(left, left + width))
              for top in range(kernel_size) for left in range(kernel_size)]
    weights = _weights(torch.stack([(query * key[pixels]).sum(-1) for pixels in window], -1), dropout_p)
    out = sum(weights[..., position, None] * value[pixels] for position, pixels in enumerate(window))
    return out.flatten(3)  # type: ignore[union-attr]  # a sum of no tensors would be 0, but windows have pixels


def _in_rows(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, kernel_size: int, scale: float,
             dropout_p: float) -> Tensor:
    """With the window shifted into the map, one row of every window after the other."""
    taps = torch.arange(kernel_size, device=query.device)
    places = [torch.arange(size, device=query.device)[:, None] for size in query.shape[1:3]]
    down, right = ((place - kernel_size // 2).clamp(0, size - kernel_size) + taps
                   for place, size in zip(places, query.shape[1:3]))
    query = (query * scale).unflatten(-1, (num_heads, -1))[:, :, :, None]
    key, value = (x.unflatten(-1, (num_heads, -1)) for x in (key, value))
    logits = []
    for row in down.unbind(1):
        part = (query * key[:, row][:, :, right]).sum(-1)  # (B, H, W, k, heads)
        if bias is not None:
            of_rows = bias[:, row - places[0][:, 0] + kernel_size - 1]
            part = part + of_rows[:, :, right - places[1] + kernel_size - 1].permute(1, 2, 3, 0)
        logits.append(part)
    weights = _weights(torch.cat(logits, 3).movedim(3, -1), dropout_p).movedim(-1, 3).unflatten(3, (kernel_size, -1))
    out = sum((weights[:, :, :, tap, ..., None] * value[:, row][:, :, right]).sum(3)
              for tap, row in enumerate(down.unbind(1)))
    return out.flatten(3)


def _in_tiles(query: Tensor, key: Tensor, value: Tensor, num_heads: int, kernel_size: int, scale: float,
              dropout_p: float) -> Tensor:
    reach = kernel_size // 2
    tile = max(4, 2 * reach)  # one tile's keys reach no further than the next tile
    height, width = query.shape[1:3]
    bottom, right = -height % tile, -width % tile
    query = F.pad(query, (0, 0, 0, right, 0, bottom)).unflatten(1, (-1, tile)).unflatten(3, (-1, tile))
    around = (0, 0, reach, right + tile - reach, reach, bottom + tile - reach)
    key, value = (_with_halo(_with_halo(F.pad(x, around), 1, tile, reach), 3, tile, reach) for x in (key, value))
    query, key, value = (x.unflatten(-1, (num_heads, -1)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)
                         for x in (query, key, value))  # (B, rows, columns, heads, pixels of a tile, C / heads)
    logits = (query * scale @ key.mT).masked_fill(~_windows(tile, kernel_size, query.device), float('-inf'))
    out = _weights(logits, dropout_p) @ value
    out = out.unflatten(4, (tile, tile)).permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)
    return out[:, :height, :width].contiguous()


def _weights(logits: Tensor, dropout_p: float) -> Tensor:
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return F.dropout(weights, dropout_p).to(logits.dtype)


def _with_halo(x: Tensor, dim: int, tile: int, reach: int) -> Tensor:
    """Split a padded dimension into tiles, each followed by the beginning of the next."""
    x = x.unflatten(dim, (-1, tile))
    count = x.shape[dim] - 1
    return torch.cat([x.narrow(dim, 0, count), x.narrow(dim, 1, count).narrow(dim + 1, 0, 2 * reach)], dim + 1)


def _windows(tile: int, kernel_size: int, device: torch.device) -> Tensor:
    """``(tile * tile, keys)``: whether each key of the tile and its halo lies in the window of each query."""
    queries, keys = torch.arange(tile, device=device), torch.arange(tile + kernel_size - 1, device=device)
    offset = keys - queries[:, None]
    near = (offset >= 0) & (offset < kernel_size)  # along one dimension
    return (near[:, None, :, None] & near[None, :, None, :]).flatten(2).flatten(0, 1)
