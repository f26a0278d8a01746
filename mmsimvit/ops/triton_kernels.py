"""Central and neighborhood attention in Triton: one pass over memory forward, two backward.

A program computes one head of a small tile of pixels. The tile's windows overlap, so that all but the first load of a key or
value come from the caches. Every output is gathered by the program that owns it: no atomics, the same bits in every run.
"""
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 4
TILE_NUMBERS = 1024  # of one map in a tile: 8 for each thread; in 32 bits no kernel spills registers for 32 or 64 channels


def forward(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, kernel_size: int, scale: float,
            shifted: bool) -> Tensor:
    """Three times ``(B, H, W, C)`` -> ``(B, H, W, C)``, contiguous."""
    query, key, value = map(_rows, (query, key, value))
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _launch(_forward_kernel, query, num_heads, kernel_size, scale, shifted, (query, key, value, out), _table(bias))
    return out


def backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, kernel_size: int,
             scale: float, shifted: bool, grad_query: Tensor, grad_key: Tensor, grad_value: Tensor,
             grad_bias: Tensor | None) -> None:
    """Write the gradients of query, key and value, ``(B, H, W, C)``, and of the bias into the last four."""
    grad, query, key, value = map(_rows, (grad, query, key, value))
    batch, height, width, _ = query.shape
    # For every pixel and head: the logits and the weights' gradients of its window, logsumexp, and mean weight gradient.
    scores = query.new_empty(batch, num_heads, 2 * kernel_size**2 + 2, height, width,
                             dtype=torch.promote_types(query.dtype, torch.float32))
    _launch(_query_gradient_kernel, query, num_heads, kernel_size, scale, shifted, (grad, query, key, value, grad_query),
            _table(bias), scores)
    _launch(_key_value_gradient_kernel, query, num_heads, kernel_size, scale, shifted, (grad, query, grad_key, grad_value),
            scores)
    if grad_bias is not None:
        grad_bias.copy_(_bias_gradient(scores, kernel_size))


def _bias_gradient(scores: Tensor, kernel_size: int) -> Tensor:
    """Sum the gradients of the logits, which go over what is in ``scores``, for each offset between query and key."""
    logits, grad_weights, logsumexp, mean = scores.split([kernel_size**2, kernel_size**2, 1, 1], 2)
    grad_logits = logits.sub_(logsumexp).exp_().mul_(grad_weights.sub_(mean)).sum(0).unflatten(1, (kernel_size, -1))
    for size in scores.shape[-2:]:  # rows, then columns: (heads, k, ..., size, ...) -> (heads, ..., 2k - 1)
        pixel, tap = torch.arange(size, device=scores.device), torch.arange(kernel_size, device=scores.device)[:, None]
        offset = (pixel - kernel_size // 2).clamp(0, size - kernel_size) + tap - pixel + kernel_size - 1
        is_at = (offset[..., None] == torch.arange(2 * kernel_size - 1, device=scores.device)).to(scores.dtype)
        grad_logits = torch.tensordot(grad_logits, is_at, ([1, -2], [0, 1]))
    return grad_logits


def _table(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _launch(kernel: Any, like: Tensor, num_heads: int, kernel_size: int, scale: float, shifted: bool,
            maps: tuple[Tensor, ...], *others: Tensor | None) -> None:
    batch, height, width, channels = like.shape
    dims = channels // num_heads
    constants = tile_constants(dims)
    tiles = triton.cdiv(height, constants['TILE_HEIGHT']), triton.cdiv(width, constants['TILE_WIDTH'])
    programs = batch * tiles[0] * tiles[1] * num_heads
    if not programs:
        return
    strides = [stride for x in maps for stride in x.stride()[:3]]
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
        kernel[programs, ](*maps, *others, *strides, height, width, num_heads, *tiles, DIMS=dims, KERNEL_SIZE=kernel_size,
                           SHIFTED=shifted, SCALE=scale, DOUBLE=like.dtype == torch.float64, **constants, num_warps=NUM_WARPS)


def tile_constants(dims: int) -> dict[str, int]:
    """The tile for heads of ``dims`` channels: 4 x 4 pixels for 64, 4 x 8 for 32."""
    block = triton.next_power_of_2(dims)
    pixels = max(TILE_NUMBERS // block, 1)
    height = 1 << (pixels.bit_length() - 1) // 2
    return dict(BLOCK_DIMS=block, TILE_HEIGHT=height, TILE_WIDTH=pixels // height)


@triton.jit
def _place(height, width, num_heads, tile_rows, tile_columns, TILE_HEIGHT: tl.constexpr, TILE_WIDTH: tl.constexpr):
    """Image, head and first pixel of this program, and the pixels of its tile counted from that one."""
    program = tl.program_id(0).to(tl.int64)  # so that all offsets made of it have 64 bits
    head = program % num_heads
    tile = program // num_heads
    column = tile % tile_columns * TILE_WIDTH
    tile = tile // tile_columns
    row = tile % tile_rows * TILE_HEIGHT
    image = tile // tile_rows
    pixel = tl.arange(0, TILE_HEIGHT * TILE_WIDTH)
    return image, head, row, column, pixel // TILE_WIDTH, pixel % TILE_WIDTH


@triton.jit
def _inside(row, column, height, width):
    return (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _first(origin, pixel, size, KERNEL_SIZE: tl.constexpr, SHIFTED: tl.constexpr):
    """First row or column in the window of a pixel, both counted from the origin."""
    first = pixel - KERNEL_SIZE // 2
    if SHIFTED:
        first = (tl.minimum(tl.maximum(origin + first, 0), size - KERNEL_SIZE) - origin).to(tl.int32)
    return first


@triton.jit
def _is_seen(position, origin, TILE: tl.constexpr, size, KERNEL_SIZE: tl.constexpr):
    """Whether keys of a tile can have this position in a window that is not shifted; others are those of shifted windows."""
    return ((position >= 0) | (origin + TILE > size - KERNEL_SIZE)) & ((position < KERNEL_SIZE) | (origin < KERNEL_SIZE))


@triton.jit
def _bias(bias, head, down, right, exists, KERNEL_SIZE: tl.constexpr):
    """Of the keys at these offsets from their queries."""
    side: tl.constexpr = 2 * KERNEL_SIZE - 1
    return tl.load(bias + head * side * side + (down + KERNEL_SIZE - 1) * side + right + KERNEL_SIZE - 1, exists, 0)


# Without these, each new image size would compile other variants, for numbers that divide by 16 and others.
_kernel = triton.jit(do_not_specialize=['height', 'width', 'num_heads', 'tile_rows', 'tile_columns'])


@_kernel
def _forward_kernel(query, key, value, out, bias,
                    query_b, query_h, query_w, key_b, key_h, key_w, value_b, value_h, value_w, out_b, out_h, out_w,
                    height, width, num_heads, tile_rows, tile_columns,
                    DIMS: tl.constexpr, KERNEL_SIZE: tl.constexpr, SHIFTED: tl.constexpr, SCALE: tl.constexpr,
                    DOUBLE: tl.constexpr, BLOCK_DIMS: tl.constexpr, TILE_HEIGHT: tl.constexpr, TILE_WIDTH: tl.constexpr):
    image, head, row, column, y, x = _place(height, width, num_heads, tile_rows, tile_columns, TILE_HEIGHT, TILE_WIDTH)
    wide = tl.float64 if DOUBLE else tl.float32
    dim = tl.arange(0, BLOCK_DIMS)[None, :]
    real = dim < DIMS
    query += image * query_b + row * query_h + column * query_w + head * DIMS
    key += image * key_b + row * key_h + column * key_w + head * DIMS
    value += image * value_b + row * value_h + column * value_w + head * DIMS
    out += image * out_b + row * out_h + column * out_w + head * DIMS
    top = _first(row, y, height, KERNEL_SIZE, SHIFTED)
    left = _first(column, x, width, KERNEL_SIZE, SHIFTED)

    exists = _inside(row + y, column + x, height, width)
    own = exists[:, None] & real
    q = tl.load(query + (y * query_h + x * query_w)[:, None] + dim, own, 0).to(wide) * SCALE
    # Softmax in one pass (online): the sums are rescaled whenever a larger logit comes.
    largest = tl.full([TILE_HEIGHT * TILE_WIDTH], float('-inf'), wide)
    total = tl.zeros([TILE_HEIGHT * TILE_WIDTH], wide)
    result = tl.zeros([TILE_HEIGHT * TILE_WIDTH, BLOCK_DIMS], wide)
    for i in (range if SHIFTED else tl.static_range)(KERNEL_SIZE):
        for j in (range if SHIFTED else tl.static_range)(KERNEL_SIZE):
            ny = top + i
            nx = left + j
            seen = _inside(row + ny, column + nx, height, width)[:, None] & real
            k = tl.load(key + (ny * key_h + nx * key_w)[:, None] + dim, seen, 0).to(wide)
            v = tl.load(value + (ny * value_h + nx * value_w)[:, None] + dim, seen, 0).to(wide)
            logit = tl.sum(q * k, 1)  # 0 outside of the map, where it stays in the softmax
            if bias is not None:
                logit += _bias(bias, head, ny - y, nx - x, exists, KERNEL_SIZE)
            new_largest = tl.maximum(largest, logit)
            decay = tl.exp(largest - new_largest)
            weight = tl.exp(logit - new_largest)
            largest = new_largest
            total = total * decay + weight
            result = result * decay[:, None] + weight[:, None] * v
    result = result / total[:, None]
    tl.store(out + (y * out_h + x * out_w)[:, None] + dim, result.to(out.dtype.element_ty), own)


@_kernel
def _query_gradient_kernel(grad, query, key, value, grad_query, bias, scores,
                           grad_b, grad_h, grad_w, query_b, query_h, query_w, key_b, key_h, key_w,
                           value_b, value_h, value_w, grad_query_b, grad_query_h, grad_query_w,
                           height, width, num_heads, tile_rows, tile_columns,
                           DIMS: tl.constexpr, KERNEL_SIZE: tl.constexpr, SHIFTED: tl.constexpr, SCALE: tl.constexpr,
                           DOUBLE: tl.constexpr, BLOCK_DIMS: tl.constexpr, TILE_HEIGHT: tl.constexpr, TILE_WIDTH: tl.constexpr):
    image, head, row, column, y, x = _place(height, width, num_heads, tile_rows, tile_columns, TILE_HEIGHT, TILE_WIDTH)
    wide = tl.float64 if DOUBLE else tl.float32
    dim = tl.arange(0, BLOCK_DIMS)[None, :]
    real = dim < DIMS
    grad += image * grad_b + row * grad_h + column * grad_w + head * DIMS
    query += image * query_b + row * query_h + column * query_w + head * DIMS
    key += image * key_b + row * key_h + column * key_w + head * DIMS
    value += image * value_b + row * value_h + column * value_w + head * DIMS
    grad_query += image * grad_query_b + row * grad_query_h + column * grad_query_w + head * DIMS
    window: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    plane = height.to(tl.int64) * width
    scores += (image * num_heads + head) * (2 * window + 2) * plane + row * width + column
    pixel = y * width + x
    top = _first(row, y, height, KERNEL_SIZE, SHIFTED)
    left = _first(column, x, width, KERNEL_SIZE, SHIFTED)

    exists = _inside(row + y, column + x, height, width)
    own = exists[:, None] & real
    q = tl.load(query + (y * query_h + x * query_w)[:, None] + dim, own, 0).to(wide) * SCALE
    g = tl.load(grad + (y * grad_h + x * grad_w)[:, None] + dim, own, 0).to(wide)
    # With weights w, their gradients a = g . v and d = sum(w a), the gradient of q is the sum of w (a - d) k. Kept apart as
    # sum(w a k) and d sum(w k), it needs each key and value once.
    largest = tl.full([TILE_HEIGHT * TILE_WIDTH], float('-inf'), wide)
    total = tl.zeros([TILE_HEIGHT * TILE_WIDTH], wide)
    mean = tl.zeros([TILE_HEIGHT * TILE_WIDTH], wide)
    keys = tl.zeros([TILE_HEIGHT * TILE_WIDTH, BLOCK_DIMS], wide)
    result = tl.zeros([TILE_HEIGHT * TILE_WIDTH, BLOCK_DIMS], wide)
    for i in (range if SHIFTED else tl.static_range)(KERNEL_SIZE):
        for j in (range if SHIFTED else tl.static_range)(KERNEL_SIZE):
            ny = top + i
            nx = left + j
            seen = _inside(row + ny, column + nx, height, width)[:, None] & real
            k = tl.load(key + (ny * key_h + nx * key_w)[:, None] + dim, seen, 0).to(wide)
            v = tl.load(value + (ny * value_h + nx * value_w)[:, None] + dim, seen, 0).to(wide)
            logit = tl.sum(q * k, 1)
            if bias is not None:
                logit += _bias(bias, head, ny - y, nx - x, exists, KERNEL_SIZE)
            grad_weight = tl.sum(g * v, 1)
            position = i * KERNEL_SIZE + j
            tl.store(scores + position * plane + pixel, logit, exists)
            tl.store(scores + (window + position) * plane + pixel, grad_weight, exists)
            new_largest = tl.maximum(largest, logit)
            decay = tl.exp(largest - new_largest)
            weight = tl.exp(logit - new_largest)
            largest = new_largest
            total = total * decay + weight
            mean = mean * decay + weight * grad_weight
            keys = keys * decay[:, None] + weight[:, None] * k
            result = result * decay[:, None] + (weight * grad_weight)[:, None] * k
    mean = mean / total
    result = (result - mean[:, None] * keys) / total[:, None] * SCALE
    tl.store(grad_query + (y * grad_query_h + x * grad_query_w)[:, None] + dim, result.to(grad_query.dtype.element_ty), own)
    tl.store(scores + 2 * window * plane + pixel, largest + tl.log(total), exists)
    tl.store(scores + (2 * window + 1) * plane + pixel, mean, exists)


@_kernel
def _key_value_gradient_kernel(grad, query, grad_key, grad_value, scores,
                               grad_b, grad_h, grad_w, query_b, query_h, query_w,
                               grad_key_b, grad_key_h, grad_key_w, grad_value_b, grad_value_h, grad_value_w,
                               height, width, num_heads, tile_rows, tile_columns,
                               DIMS: tl.constexpr, KERNEL_SIZE: tl.constexpr, SHIFTED: tl.constexpr, SCALE: tl.constexpr,
                               DOUBLE: tl.constexpr, BLOCK_DIMS: tl.constexpr, TILE_HEIGHT: tl.constexpr,
                               TILE_WIDTH: tl.constexpr):
    image, head, row, column, y, x = _place(height, width, num_heads, tile_rows, tile_columns, TILE_HEIGHT, TILE_WIDTH)
    wide = tl.float64 if DOUBLE else tl.float32
    dim = tl.arange(0, BLOCK_DIMS)[None, :]
    real = dim < DIMS
    grad += image * grad_b + row * grad_h + column * grad_w + head * DIMS
    query += image * query_b + row * query_h + column * query_w + head * DIMS
    grad_key += image * grad_key_b + row * grad_key_h + column * grad_key_w + head * DIMS
    grad_value += image * grad_value_b + row * grad_value_h + column * grad_value_w + head * DIMS
    window: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    plane = height.to(tl.int64) * width
    scores += (image * num_heads + head) * (2 * window + 2) * plane + row * width + column

    # At the border, queries further off than the reach of a window see a key, and the windows of these are shifted.
    more: tl.constexpr = KERNEL_SIZE // 2 if SHIFTED else 0
    result_key = tl.zeros([TILE_HEIGHT * TILE_WIDTH, BLOCK_DIMS], wide)
    result_value = tl.zeros([TILE_HEIGHT * TILE_WIDTH, BLOCK_DIMS], wide)
    for i in (range if SHIFTED else tl.static_range)(-more, KERNEL_SIZE + more):
        if _is_seen(i, row, TILE_HEIGHT, height, KERNEL_SIZE):
            for j in (range if SHIFTED else tl.static_range)(-more, KERNEL_SIZE + more):
                if _is_seen(j, column, TILE_WIDTH, width, KERNEL_SIZE):
                    # The query in whose window this program's pixel has this position lies on the other side.
                    ny = y - (i - KERNEL_SIZE // 2)
                    nx = x - (j - KERNEL_SIZE // 2)
                    exists = _inside(row + ny, column + nx, height, width)
                    if SHIFTED:
                        down = y - _first(row, ny, height, KERNEL_SIZE, SHIFTED)
                        right = x - _first(column, nx, width, KERNEL_SIZE, SHIFTED)
                        exists = exists & _inside(down, right, KERNEL_SIZE, KERNEL_SIZE)
                        position = down * KERNEL_SIZE + right
                    else:
                        position = i * KERNEL_SIZE + j
                    seen = exists[:, None] & real
                    q = tl.load(query + (ny * query_h + nx * query_w)[:, None] + dim, seen, 0).to(wide)
                    g = tl.load(grad + (ny * grad_h + nx * grad_w)[:, None] + dim, seen, 0).to(wide)
                    pixel = ny * width + nx
                    logit = tl.load(scores + position * plane + pixel, exists, 0)
                    grad_weight = tl.load(scores + (window + position) * plane + pixel, exists, 0)
                    logsumexp = tl.load(scores + 2 * window * plane + pixel, exists, 0)
                    mean = tl.load(scores + (2 * window + 1) * plane + pixel, exists, 0)
                    weight = tl.exp(logit - logsumexp)  # meets zeros of q and g where there is no query
                    result_value += weight[:, None] * g
                    result_key += (weight * (grad_weight - mean))[:, None] * q
    own = _inside(row + y, column + x, height, width)[:, None] & real
    tl.store(grad_key + (y * grad_key_h + x * grad_key_w)[:, None] + dim,
             (result_key * SCALE).to(grad_key.dtype.element_ty), own)
    tl.store(grad_value + (y * grad_value_h + x * grad_value_w)[:, None] + dim,
             result_value.to(grad_value.dtype.element_ty), own)
