"""Central attention in plain PyTorch that works in chunks small enough for the caches and saves nothing.

The function moves memory, it hardly computes: each step below reads and writes buffers of one chunk, allocated once, that the
last step left in cache. Shapes: ``(B, H, W, C)`` outside; inside, ``n`` images of ``h`` rows and ``k * k`` weights as
``(k * k, n, h, W, heads)``.
"""
from collections.abc import Iterator

import torch
from torch import Tensor

from . import tiles

# Of one map; about ten such buffers are in use. Elsewhere than on a CPU chunks only limit memory, and launches cost.
CHUNK_BYTES, DEVICE_CHUNK_BYTES = 1 << 20, 1 << 28


def forward(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, kernel_size: int, scale: float,
            shifted: bool) -> Tensor:
    """Three times ``(B, H, W, C)`` -> ``(B, H, W, C)``, contiguous."""
    if shifted:
        return tiles.forward(query, key, value, bias, num_heads, kernel_size, scale)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for chunk in _chunks(query, kernel_size):
        if chunk.is_new_shape:
            q = chunk.buffer(query)
            padded = chunk.buffer(query, parts=2, padded=True)
            k, v = padded.chunk(2, -1)
            dots = _Dots(q, k, num_heads, kernel_size)
            part = chunk.buffer(query)
            part_heads, v_heads = _heads(part, num_heads), [_heads(x, num_heads) for x in _window(v, kernel_size)]
        chunk.load_inside(q, query).mul_(scale)
        chunk.load_around(k, key)
        chunk.load_around(v, value)
        weights = dots.compute().softmax(0).unsqueeze(-1)
        torch.mul(weights[0], v_heads[0], out=part_heads)
        for weight, neighbours in zip(weights[1:], v_heads[1:]):
            part_heads.addcmul_(weight, neighbours)
        out[chunk.images, chunk.top:chunk.bottom] = part
    return out


def backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, kernel_size: int,
             scale: float, shifted: bool, grad_query: Tensor, grad_key: Tensor, grad_value: Tensor,
             grad_bias: Tensor | None) -> None:
    """Write the gradients of query, key and value, ``(B, H, W, C)``, and of the bias into the last four.

    ``[query, grad]`` and ``[key, value]`` lie side by side, so that the weights' logits and the weights' gradients are the dot
    products of one pass with twice the heads, as are the gradients of key and value.
    """
    if shifted:
        return tiles.backward(grad, query, key, value, bias, num_heads, kernel_size, scale, grad_query, grad_key, grad_value,
                              grad_bias)
    reach, channels = kernel_size // 2, query.shape[-1]
    handed_down = query.new_empty(0)
    for chunk in _chunks(query, kernel_size):
        if chunk.is_new_shape:
            qg = chunk.buffer(query, parts=2)
            q, g = qg.chunk(2, -1)
            kv = chunk.buffer(query, parts=2, padded=True)
            k, v = kv.chunk(2, -1)
            dots = _Dots(qg, kv, 2 * num_heads, kernel_size)
            part_q, part_kv = chunk.buffer(query), chunk.buffer(query, parts=2, padded=True)
            part_q_heads, qg_heads = _heads(part_q, num_heads), _heads(qg, 2 * num_heads)
            k_heads = [_heads(x, num_heads) for x in _window(k, kernel_size)]
            part_kv_heads = [_heads(x, 2 * num_heads) for x in _window(part_kv, kernel_size)]
        chunk.load_inside(q, query).mul_(scale)
        chunk.load_inside(g, grad)
        chunk.load_around(k, key)
        chunk.load_around(v, value)
        logits, grad_weights = dots.compute().chunk(2, -1)
        weights = logits.softmax(0)
        grad_logits = (grad_weights - (weights * grad_weights).sum(0)) * weights
        factors = torch.cat([grad_logits, weights], -1).unsqueeze(-1)  # of query for key, and of grad for value

        grad_logits = grad_logits.unsqueeze(-1)
        torch.mul(grad_logits[0], k_heads[0], out=part_q_heads)
        for grad_logit, neighbours in zip(grad_logits[1:], k_heads[1:]):
            part_q_heads.addcmul_(grad_logit, neighbours)
        grad_query[chunk.images, chunk.top:chunk.bottom] = part_q.mul_(scale)

        # Rows near the seam of two chunks get a share from both: the upper chunk hands its share down.
        if chunk.top:
            part_kv[:, :2 * reach] = handed_down
        part_kv[:, 2 * reach if chunk.top else 0:].zero_()
        for factor, neighbours in zip(factors, part_kv_heads):
            neighbours.addcmul_(factor, qg_heads)
        done = max(chunk.bottom if chunk.is_last else chunk.bottom - reach, chunk.first)
        inside = part_kv[:, chunk.first - (chunk.top - reach):done - (chunk.top - reach), reach:reach + query.shape[2]]
        grad_key[chunk.images, chunk.first:done] = inside[..., :channels]  # the query in it was scaled already
        grad_value[chunk.images, chunk.first:done] = inside[..., channels:]
        handed_down = part_kv[:, part_kv.shape[1] - 2 * reach:].clone()


class _Chunk:
    """Some whole images, or some rows of one image."""

    def __init__(self, images: slice, top: int, bottom: int, height: int, reach: int, is_new_shape: bool):
        self.images, self.top, self.bottom, self.reach = images, top, bottom, reach
        self.first, self.last = max(top - reach, 0), min(bottom + reach, height)  # rows that its windows see
        self.is_last = bottom == height
        self.is_new_shape = is_new_shape

    def buffer(self, like: Tensor, parts: int = 1, padded: bool = False) -> Tensor:
        """Zeros for the chunk, with the window's reach around if ``padded``; in float32 at least."""
        width, channels = like.shape[2:]
        pad = 2 * self.reach if padded else 0
        return torch.zeros(self.images.stop - self.images.start, self.bottom - self.top + pad, width + pad, parts * channels,
                           dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)

    def load_inside(self, buffer: Tensor, x: Tensor) -> Tensor:
        return buffer.copy_(x[self.images, self.top:self.bottom])

    def load_around(self, buffer: Tensor, x: Tensor) -> None:
        """With zeros above and below the map; those to its left and right stay from the beginning."""
        above = self.first - (self.top - self.reach)
        below = above + self.last - self.first
        buffer[:, above:below, self.reach:self.reach + x.shape[2]] = x[self.images, self.first:self.last]
        buffer[:, :above].zero_()
        buffer[:, below:].zero_()


def _chunks(query: Tensor, kernel_size: int) -> Iterator[_Chunk]:
    batch, height, width, channels = query.shape
    row_bytes = max(width * channels * 4, 1)
    limit = CHUNK_BYTES if query.device.type == 'cpu' else DEVICE_CHUNK_BYTES
    rows = max(min(limit // row_bytes, height), 1)
    images = max(limit // (rows * row_bytes), 1) if rows == height else 1
    shape = None
    for image in range(0, batch, images):
        for top in range(0, height, rows):
            last_image, bottom = min(image + images, batch), min(top + rows, height)
            previous, shape = shape, (last_image - image, bottom - top)
            yield _Chunk(slice(image, last_image), top, bottom, height, kernel_size // 2, shape != previous)


class _Dots:
    """Dot products of each query with the keys around it, in buffers of their own."""

    def __init__(self, q: Tensor, padded_k: Tensor, num_heads: int, kernel_size: int):
        self.q = q
        self.neighbours = _window(padded_k, kernel_size)
        self.product = torch.empty_like(q)
        self.product_heads = _heads(self.product, num_heads)
        self.out = q.new_empty(kernel_size**2, *self.product_heads.shape[:-1])

    def compute(self) -> Tensor:
        """``(k * k, n, h, W, heads)``, valid until the next call."""
        for neighbours, dots in zip(self.neighbours, self.out):
            torch.mul(self.q, neighbours, out=self.product)
            torch.sum(self.product_heads, -1, out=dots)  # half the time of a matrix-vector product, which has one thread
        return self.out


def _window(padded: Tensor, kernel_size: int) -> list[Tensor]:
    """The parts of a padded map that lie under each position of the window, as views."""
    height, width = (size - kernel_size + 1 for size in padded.shape[1:3])
    return [padded[:, top:top + height, left:left + width] for top in range(kernel_size) for left in range(kernel_size)]


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(..., C) -> (..., heads, C / heads), a view."""
    return x.unflatten(-1, (num_heads, x.shape[-1] // num_heads))
