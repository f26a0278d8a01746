"""Attention of each pixel to the window around it: central self-attention, the core of SimViT (arXiv 2112.13085, section 3.2),
and neighborhood attention (NATTEN, arXiv 2204.07143, section 3.2). They differ at the border of the map.
"""
from collections.abc import Iterator, Sequence
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import backends, composite, eager, reference


def central_attention(query: Tensor, key: Tensor, value: Tensor | None, num_heads: int, kernel_size: int = 3,
                      scale: float | None = None, dropout_p: float = 0.0, backend: str = 'auto') -> Tensor:
    """Let each pixel attend to the ``kernel_size`` x ``kernel_size`` window around it.

    Keys and values outside the map are zero vectors that stay in the softmax, with logit 0 and value 0: they are
    neither masked out nor replaced by shifting the window into the map.

    Args:
        query: ``(B, H, W, C)``, any strides; the heads lie one after the other in C.
        key: the same; or, if ``value`` is None, ``(B, H, W, 2C)`` with the keys in its first half and the values in its
            second, as a joint projection gives them. Its gradient then comes in one piece too.
        value: as ``query``, or None.
        num_heads: number of heads; divides C.
        kernel_size: width of the window in pixels, odd.
        scale: factor on the logits; ``(C / num_heads) ** -0.5`` if None.
        dropout_p: probability with which an attention weight is set to zero.
        backend: ``auto`` for what ``mmsimvit.ops.set_backend`` says, or else the fastest: ``triton`` on CUDA devices,
            ``eager`` on the CPU, ``composite`` elsewhere. These three and ``reference`` can be asked for by name.
            Attention dropout, the transforms of ``torch.func`` and the export to ONNX always take ``composite``, or
            ``reference`` if that is asked for.

    Returns:
        ``(B, H, W, C)``, contiguous, in the dtype of ``query``. The softmax is computed in float32 at least. Under
        autocast, float32 tensors are taken in the lower precision.

    Raises:
        ValueError: for shapes, dtypes, a head count, a window, a dropout rate or a backend that do not fit.
        RuntimeError: if the backend asked for cannot run here.
    """
    return _attend(query, key, value, None, num_heads, kernel_size, scale, dropout_p, False, backend)


def neighborhood_attention(query: Tensor, key: Tensor, value: Tensor | None, num_heads: int, kernel_size: int = 7,
                           bias: Tensor | None = None, scale: float | None = None, dropout_p: float = 0.0,
                           backend: str = 'auto') -> Tensor:
    """Let each pixel attend to ``kernel_size`` x ``kernel_size`` pixels, the nearest ones (arXiv 2204.07143, section 3.2).

    At the border the window is shifted into the map, as in NATTEN, so that it always has ``kernel_size ** 2`` keys: the window
    of row y begins in row ``min(max(y - kernel_size // 2, 0), H - kernel_size)``, and likewise for columns.

    Args:
        query: ``(B, H, W, C)``, any strides; the heads lie one after the other in C. H and W are ``kernel_size`` at least.
        key: the same; or, if ``value`` is None, ``(B, H, W, 2C)`` with the keys in its first half and the values in its
            second.
        value: as ``query``, or None.
        num_heads: number of heads; divides C.
        kernel_size: width of the window in pixels, odd.
        bias: ``(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1)``, added to the logits after the scale, or None. Row
            ``key row - query row + kernel_size - 1`` and the likewise column belong to a pair of pixels.
        scale: factor on the logits; ``(C / num_heads) ** -0.5`` if None.
        dropout_p: probability with which an attention weight is set to zero.
        backend: as in ``central_attention``, but that ``auto`` is ``eager`` on all devices without Triton, and that
            ``torch.export`` takes ``composite`` unless it is strict.

    Returns:
        ``(B, H, W, C)``, contiguous, in the dtype of ``query``. The softmax is computed in float32 at least. Under
        autocast, float32 tensors are taken in the lower precision.

    Raises:
        ValueError: for shapes, dtypes, a head count, a window, a dropout rate or a backend that do not fit, and for maps
            smaller than the window, which the caller pads.
        RuntimeError: if the backend asked for cannot run here.
    """
    return _attend(query, key, value, bias, num_heads, kernel_size, scale, dropout_p, True, backend)


def _attend(query: Tensor, key: Tensor, value: Tensor | None, bias: Tensor | None, num_heads: int, kernel_size: int,
            scale: float | None, dropout_p: float, shifted: bool, backend: str) -> Tensor:
    query, key, value, bias = _autocast(query, key, value, bias)
    scale = _check(query, key, value, bias, num_heads, kernel_size, scale, dropout_p, shifted)
    backend = backends.chosen(backend)
    # Tiles suit all devices. The composite form keeps a hundred maps for the backward pass of 7 x 7 windows.
    if _is_transformed() or (backends.is_exporting() if shifted
                             else backend == 'auto' and backends.automatic(query.device) == 'composite'):
        backend = 'composite' if backend != 'reference' else backend
    if backend not in ('reference', 'composite'):
        if not (dropout_p > 0 or torch.onnx.is_in_onnx_export()):
            return _neighborhood_attention(query, key, value, bias, num_heads, kernel_size, scale, shifted, backend)
        if dropout_p > 0 and not torch.compiler.is_compiling():
            backends.warn_once(f'attention dropout ({dropout_p}) makes central and neighborhood attention several times '
                               'slower: the fast implementations do not have it, as the published models train without it')
    implementation = reference if backend == 'reference' else composite
    return implementation.attention(query, *_key_and_value(key, value), bias, num_heads, kernel_size, scale, dropout_p, shifted)


# One opaque operator: tracing and compiling see a single node for any size, and autograd keeps the inputs alone.
@torch.library.custom_op(
    'mmsimvit::neighborhood_attention', mutates_args=(),
    schema='(Tensor query, Tensor key, Tensor? value, Tensor? bias, int num_heads, int kernel_size, float scale, bool shifted, '
           'str backend) -> Tensor')
def _neighborhood_attention(query: Tensor, key: Tensor, value: Tensor | None, bias: Tensor | None, num_heads: int,
                            kernel_size: int, scale: float, shifted: bool, backend: str) -> Tensor:
    implementation = _implementation(backend, query.device)
    return implementation.forward(query, *_key_and_value(key, value), bias, num_heads, kernel_size, scale, shifted)


@torch.library.custom_op(
    'mmsimvit::neighborhood_attention_backward', mutates_args=(),
    schema='(Tensor grad, Tensor query, Tensor key, Tensor? value, Tensor? bias, int num_heads, int kernel_size, float scale, '
           'bool shifted, str backend) -> Tensor[]')
def _neighborhood_attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor | None, bias: Tensor | None,
                                     num_heads: int, kernel_size: int, scale: float, shifted: bool,
                                     backend: str) -> list[Tensor]:
    """The gradients of query, key and, if there are any, value and bias."""
    grads = _empty_like(query, key, value, bias)
    grad_query, *grad_key_and_value = grads[:2 if value is None else 3]
    implementation = _implementation(backend, query.device)
    implementation.backward(grad, query, *_key_and_value(key, value), bias, num_heads, kernel_size, scale, shifted,
                            grad_query, *_key_and_value(*grad_key_and_value), None if bias is None else grads[-1])
    return grads


def _empty_like(*tensors: Tensor | None) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors if x is not None]


@_neighborhood_attention.register_fake
def _(query: Tensor, *_: object) -> Tensor:
    return _empty_like(query)[0]


@_neighborhood_attention_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor | None, bias: Tensor | None, *_: object) -> list[Tensor]:
    return _empty_like(query, key, value, bias)


# Multiplications and additions of whole windows, as a dense product of the same shapes counts them.
@register_flop_formula(torch.ops.mmsimvit.neighborhood_attention)
def _flops(query: torch.Size, key: torch.Size, value: torch.Size | None, bias: torch.Size | None, num_heads: int,
           kernel_size: int, *_: object, **__: object) -> int:
    return 2 * 2 * prod(query) * kernel_size**2  # logits, weighted sum


@register_flop_formula(torch.ops.mmsimvit.neighborhood_attention_backward)
def _backward_flops(grad: torch.Size, *forward: Any, **__: object) -> int:
    return 5 * _flops(*forward) // 2  # the logits again, and gradients of weights, query, key and value


def _save(ctx: Any, inputs: tuple, output: Tensor | list[Tensor]) -> None:
    *tensors, ctx.num_heads, ctx.kernel_size, ctx.scale, ctx.shifted, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors  # which recomputation gives once
    grads = _neighborhood_attention_backward(grad, *tensors, ctx.num_heads, ctx.kernel_size, ctx.scale, ctx.shifted,
                                             ctx.backend)
    return *_in_place(grads, tensors), *[None] * 5


def _double_backward(ctx: Any, grads_of_grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    backends.warn_once('second derivatives of central and neighborhood attention come from their composite form, many times '
                       'slower')
    with torch.enable_grad():
        # New views are variables of this graph alone, and yet connect it to theirs.
        tensors: list[Any] = [x if x is None else x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                              for x in ctx.saved_tensors]
        grad, query, key, value, bias = tensors
        out = composite.attention(query, *_key_and_value(key, value), bias, ctx.num_heads, ctx.kernel_size, ctx.scale, 0.0,
                                  ctx.shifted)
        inputs = [x for x in tensors if x is not None]
        grads = torch.autograd.grad(out, inputs[1:], grad, create_graph=True)
    grads = torch.autograd.grad(grads, inputs, grads_of_grads, create_graph=torch.is_grad_enabled())
    return *_in_place(grads, tensors), *[None] * 5


def _in_place(grads: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
    """A gradient for each input that there is, None for the others."""
    remaining = iter(grads)
    return (None if x is None else next(remaining) for x in inputs)


_neighborhood_attention.register_autograd(_backward, setup_context=_save)
_neighborhood_attention_backward.register_autograd(_double_backward, setup_context=_save)


def _implementation(backend: str, device: torch.device) -> ModuleType:
    """The module with ``forward`` and ``backward``."""
    if backend == 'auto':  # also what a program that was traced on another device finds here
        return import_module('.triton_kernels', __package__) if backends.automatic(device) == 'triton' else eager
    if backend == 'eager':
        return eager
    if reason := backends.why_not_triton(device):
        raise RuntimeError(f'backend {backend!r} cannot run central attention here: {reason}')
    return import_module('.triton_kernels', __package__)


def _is_transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation looks into the operations."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _key_and_value(key: Tensor, value: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if value is not None:
        return key, value
    first, second = key.chunk(2, -1)
    return first, second


def _autocast(*tensors: Tensor | None) -> list[Any]:
    """As the attention of torch does, float32 to the dtype of an autocast region."""
    query = tensors[0]
    assert query is not None
    device_type = query.device.type
    if device_type == 'meta' or not torch.is_autocast_enabled(device_type):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device_type)
    return [x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors]


def _check(query: Tensor, key: Tensor, value: Tensor | None, bias: Tensor | None, num_heads: int, kernel_size: int,
           scale: float | None, dropout_p: float, shifted: bool) -> float:
    """Refuse what is not computed; give the scale."""
    shape = query.shape
    for name, x in (('query', query), ('key', key), ('value', value), ('bias', bias)):
        if x is None:
            continue
        if x.dtype != query.dtype or not x.is_floating_point():
            raise ValueError('query, key and value must have one floating-point dtype; '
                             f'query has {query.dtype}, {name} has {x.dtype}')
        if x.device != query.device:
            raise ValueError('query, key and value must be on one device; '
                             f'query is on {query.device}, {name} on {x.device}')
        if name == 'bias':
            continue
        expected = (*shape[:-1], 2 * shape[-1]) if value is None and name == 'key' else shape
        if x.dim() != 4 or x.shape != expected:
            raise ValueError('query, key and value must have one shape (B, H, W, C), or key (B, H, W, 2C) without value; '
                             f'query has {tuple(shape)}, {name} has {tuple(x.shape)}')
    channels = shape[-1]
    if num_heads < 1 or channels < 1 or channels % num_heads:
        raise ValueError(f'num_heads must divide the channels; got {num_heads} heads and {channels} channels')
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be odd and positive, so that a window has a centre; got {kernel_size}')
    if shifted and (shape[1] < kernel_size or shape[2] < kernel_size):
        raise ValueError(f'a map of {shape[1]} x {shape[2]} pixels has no window of {kernel_size} x {kernel_size}; pad it')
    expected = num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1
    if bias is not None and bias.shape != expected:
        raise ValueError(f'bias must be (num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1) = {expected}, got '
                         f'{tuple(bias.shape)}')
    if not 0 <= dropout_p < 1:
        raise ValueError(f'dropout_p must lie in [0, 1), got {dropout_p}')
    return (channels // num_heads)**-0.5 if scale is None else scale
