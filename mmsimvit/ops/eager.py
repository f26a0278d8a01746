"""Central attention in plain PyTorch that works in chunks small enough for the caches and saves nothing.

The function moves memory, it hardly computes: each step below reads and writes a chunk that the last step left in cache.
Shapes: query, out and their gradients ``(B, H, W, C)``; inside a chunk, ``n`` images of ``h`` rows, and ``k * k`` weights as
``(k * k, n, h, W, heads)``.
"""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Of one tensor; a few of them are alive at a time. Elsewhere than on a CPU chunks only limit memory, and launches cost.
CHUNK_BYTES, DEVICE_CHUNK_BYTES = 1 << 19, 1 << 28


def forward(query: Tensor, key: Tensor, value: Tensor, num_heads: int, kernel_size: int, scale: float) -> Tensor:
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for images, top, bottom in _chunks(query):
        q, k, v = _load(query, key, value, images, top, bottom, kernel_size, scale)
        weights = _logits(q, k, num_heads, kernel_size).softmax(0)
        part = torch.zeros_like(q)
        for weight, (rows, cols) in zip(weights, _window(q, kernel_size)):
            _heads(part, num_heads).addcmul_(weight.unsqueeze(-1), _heads(v[:, rows, cols], num_heads))
        out[images, top:bottom] = part
    return out


def backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, num_heads: int, kernel_size: int,
             scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value. Chunks overlap by the window's reach; they are added in a fixed order."""
    reach = kernel_size // 2
    height, width = query.shape[1:3]
    accumulate = torch.promote_types(query.dtype, torch.float32)
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    grad_key = torch.zeros(query.shape, dtype=accumulate, device=query.device)
    grad_value = torch.zeros_like(grad_key)
    for images, top, bottom in _chunks(query):
        q, k, v = _load(query, key, value, images, top, bottom, kernel_size, scale)
        g = grad[images, top:bottom].to(accumulate).contiguous()
        weights = _logits(q, k, num_heads, kernel_size).softmax(0)
        grad_logits = _logits(g, v, num_heads, kernel_size)
        grad_logits -= (weights * grad_logits).sum(0)
        grad_logits *= weights
        part_query, part_key, part_value = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for weight, grad_logit, (rows, cols) in zip(weights, grad_logits, _window(q, kernel_size)):
            grad_logit, weight = grad_logit.unsqueeze(-1), weight.unsqueeze(-1)
            _heads(part_query, num_heads).addcmul_(grad_logit, _heads(k[:, rows, cols], num_heads))
            _heads(part_key[:, rows, cols], num_heads).addcmul_(grad_logit, _heads(q, num_heads))
            _heads(part_value[:, rows, cols], num_heads).addcmul_(weight, _heads(g, num_heads))
        grad_query[images, top:bottom] = part_query.mul_(scale)
        first, last = max(top - reach, 0), min(bottom + reach, height)
        inside = slice(None), slice(first - (top - reach), last - (top - reach)), slice(reach, reach + width)
        grad_key[images, first:last] += part_key[inside]  # the query in it was scaled already
        grad_value[images, first:last] += part_value[inside]
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)


def _chunks(query: Tensor) -> Iterator[tuple[slice, int, int]]:
    """Some whole images, or some rows of one image, of a limited size: (images, first row, last row + 1)."""
    batch, height, width, channels = query.shape
    row_bytes = max(width * channels * 4, 1)
    limit = CHUNK_BYTES if query.device.type == 'cpu' else DEVICE_CHUNK_BYTES
    rows = min(max(limit // row_bytes, 1), height)
    images = max(limit // (height * row_bytes), 1) if rows == height and height else 1
    for image in range(0, batch, images):
        for top in range(0, height, max(rows, 1)):
            yield slice(image, min(image + images, batch)), top, min(top + rows, height)


def _load(query: Tensor, key: Tensor, value: Tensor, images: slice, top: int, bottom: int, kernel_size: int,
          scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The scaled queries of a chunk, and the keys and values that they see, with zeros outside of the map."""
    reach = kernel_size // 2
    height = query.shape[1]
    first, last = max(top - reach, 0), min(bottom + reach, height)
    pad = (0, 0, reach, reach, first - (top - reach), bottom + reach - last)
    accumulate = torch.promote_types(query.dtype, torch.float32)
    q = query[images, top:bottom].to(accumulate).contiguous() * scale
    return q, *(F.pad(x[images, first:last].to(accumulate), pad) for x in (key, value))


def _window(q: Tensor, kernel_size: int) -> list[tuple[slice, slice]]:
    """Rows and columns of a padded map that lie under each position of the window."""
    height, width = q.shape[1:3]
    return [(slice(top, top + height), slice(left, left + width))
            for top in range(kernel_size) for left in range(kernel_size)]


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(..., C) -> (..., heads, C / heads), a view."""
    return x.unflatten(-1, (num_heads, x.shape[-1] // num_heads))


def _logits(q: Tensor, k: Tensor, num_heads: int, kernel_size: int) -> Tensor:
    """Dot products of each query with the keys around it, (k * k, n, h, W, heads)."""
    dims = q.shape[-1] // num_heads
    logits = q.new_empty(kernel_size**2, *q.shape[:-1], num_heads)
    product, ones = torch.empty_like(q), q.new_ones(dims)
    for logit, (rows, cols) in zip(logits, _window(q, kernel_size)):
        torch.mul(q, k[:, rows, cols], out=product)
        torch.mv(product.view(-1, dims), ones, out=logit.view(-1))  # a sum over contiguous runs, as fast as it gets
    return logits
