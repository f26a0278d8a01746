"""Multi-head central self-attention, the core of SimViT (arXiv 2112.13085, section 3.2)."""
import torch
import torch.nn.functional as F
from torch import Tensor

from . import eager


def central_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, kernel_size: int = 3,
                      scale: float | None = None, dropout_p: float = 0.0) -> Tensor:
    """Let each pixel attend to the ``kernel_size`` x ``kernel_size`` window around it.

    Keys and values outside the map are zero vectors that stay in the softmax, with logit 0 and value 0: they are
    neither masked out nor replaced by shifting the window into the map.

    Args:
        query, key, value: ``(B, H, W, C)`` each, any strides; the heads lie one after the other in C.
        num_heads: number of heads; divides C.
        kernel_size: width of the window in pixels, odd.
        scale: factor on the logits; ``(C / num_heads) ** -0.5`` if None.
        dropout_p: probability with which an attention weight is set to zero.

    Returns:
        ``(B, H, W, C)``, contiguous, in the dtype of ``value``. The softmax is computed in float32 at least.

    Raises:
        ValueError: for shapes, dtypes, a head count, a window or a dropout rate that do not fit.
    """
    scale = _check(query, key, value, num_heads, kernel_size, scale, dropout_p)
    if dropout_p > 0:
        return _composite(query, key, value, num_heads, kernel_size, scale, dropout_p)
    return _central_attention(query, key, value, num_heads, kernel_size, scale)


def central_attention_reference(query: Tensor, key: Tensor, value: Tensor, num_heads: int, kernel_size: int = 3,
                                scale: float | None = None, dropout_p: float = 0.0) -> Tensor:
    """What :func:`central_attention` computes, written to be checked by eye; it unfolds all k * k neighbours."""
    scale = _check(query, key, value, num_heads, kernel_size, scale, dropout_p)
    query = _split_heads(query, num_heads)
    key, value = (
        _split_heads(_pad(x, kernel_size).unfold(1, kernel_size, 1).unfold(2, kernel_size, 1).flatten(4).mT, num_heads)
        for x in (key, value))  # (B, H, W, k * k, heads, C / heads)
    logits = torch.einsum('bhwnd,bhwknd->bhwnk', query, key) * scale
    return torch.einsum('bhwnk,bhwknd->bhwnd', _attention_weights(logits, dropout_p).to(value.dtype), value).flatten(3)


# One opaque operator: tracing and compiling see a single node for any size, and autograd keeps query, key and value alone.
@torch.library.custom_op('mmsimvit::central_attention', mutates_args=())
def _central_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, kernel_size: int,
                       scale: float) -> Tensor:
    return eager.forward(query, key, value, num_heads, kernel_size, scale)


@torch.library.custom_op('mmsimvit::central_attention_backward', mutates_args=())
def _central_attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, num_heads: int,
                                kernel_size: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return eager.backward(grad, query, key, value, num_heads, kernel_size, scale)


@_central_attention.register_fake
def _(query, key, value, num_heads, kernel_size, scale):
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@_central_attention_backward.register_fake
def _(grad, query, key, value, num_heads, kernel_size, scale):
    return tuple(torch.empty_like(query, memory_format=torch.contiguous_format) for _ in range(3))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.arguments = inputs[3:]


def _backward(ctx, grad):
    return *_central_attention_backward(grad, *ctx.saved_tensors, *ctx.arguments), None, None, None


_central_attention.register_autograd(_backward, setup_context=_save)


def _composite(query: Tensor, key: Tensor, value: Tensor, num_heads: int, kernel_size: int, scale: float,
               dropout_p: float) -> Tensor:
    """From differentiable operations, for what the operator does not do."""
    height, width = query.shape[1:3]
    key, value = (_split_heads(_pad(x, kernel_size), num_heads) for x in (key, value))
    query = _split_heads(query * scale, num_heads)
    # Slices of the padded map are views: only one product of the size of a map exists at a time.
    window = [(slice(None), slice(top, top + height), slice(left, left + width))
              for top in range(kernel_size) for left in range(kernel_size)]
    logits = torch.stack([(query * key[pixels]).sum(-1) for pixels in window], -1)  # (B, H, W, heads, k * k)
    weights = _attention_weights(logits, dropout_p).to(value.dtype)
    out = weights[..., :1] * value[window[0]]
    for position, pixels in enumerate(window[1:], 1):
        out = out + weights[..., position, None] * value[pixels]
    return out.flatten(3)


def _pad(x: Tensor, kernel_size: int) -> Tensor:
    """(B, H, W, C) with the window's reach of zeros around every map."""
    reach = kernel_size // 2
    return F.pad(x, (0, 0, reach, reach, reach, reach))


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(..., C) -> (..., heads, C / heads)."""
    return x.unflatten(-1, (num_heads, x.shape[-1] // num_heads))


def _attention_weights(logits: Tensor, dropout_p: float) -> Tensor:
    at_least_float32 = torch.promote_types(logits.dtype, torch.float32)
    return F.dropout(logits.softmax(-1, dtype=at_least_float32), dropout_p)


def _check(query: Tensor, key: Tensor, value: Tensor, num_heads: int, kernel_size: int, scale: float | None,
           dropout_p: float) -> float:
    """Refuse what is not computed; give the scale."""
    for name, x in (('query', query), ('key', key), ('value', value)):
        if x.dim() != 4 or x.shape != query.shape:
            raise ValueError('query, key and value must have one shape (B, H, W, C); '
                             f'query has {tuple(query.shape)}, {name} has {tuple(x.shape)}')
        if x.dtype != query.dtype or not x.is_floating_point():
            raise ValueError('query, key and value must have one floating-point dtype; '
                             f'query has {query.dtype}, {name} has {x.dtype}')
    channels = query.shape[-1]
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f'num_heads must divide the {channels} channels, got {num_heads}')
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be odd and positive, so that a window has a centre; got {kernel_size}')
    if not 0 <= dropout_p < 1:
        raise ValueError(f'dropout_p must lie in [0, 1), got {dropout_p}')
    return (channels // num_heads)**-0.5 if scale is None else scale
