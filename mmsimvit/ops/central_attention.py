"""Multi-head central self-attention, the core of SimViT (arXiv 2112.13085, section 3.2)."""
from collections.abc import Sequence
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
    query, key, value = _autocast(query, key, value)
    scale = _check(query, key, value, num_heads, kernel_size, scale, dropout_p)
    backend = backends.chosen(backend)
    if _is_transformed() or (backend == 'auto' and backends.automatic(query.device) == 'composite'):
        backend = 'composite' if backend != 'reference' else backend
    if backend not in ('reference', 'composite'):
        if not (dropout_p > 0 or torch.onnx.is_in_onnx_export()):
            return _central_attention(query, key, value, num_heads, kernel_size, scale, backend)
        if dropout_p > 0 and not torch.compiler.is_compiling():
            backends.warn_once(f'attention dropout ({dropout_p}) makes central attention several times slower: the fast '
                               'implementations do not have it, as the published models train without it')
    implementation = reference if backend == 'reference' else composite
    return implementation.central_attention(query, *_key_and_value(key, value), num_heads, kernel_size, scale, dropout_p)


# One opaque operator: tracing and compiling see a single node for any size, and autograd keeps query, key and value alone.
@torch.library.custom_op(
    'mmsimvit::central_attention', mutates_args=(),
    schema='(Tensor query, Tensor key, Tensor? value, int num_heads, int kernel_size, float scale, str backend) -> Tensor')
def _central_attention(query: Tensor, key: Tensor, value: Tensor | None, num_heads: int, kernel_size: int, scale: float,
                       backend: str) -> Tensor:
    implementation = _implementation(backend, query.device)
    return implementation.forward(query, *_key_and_value(key, value), num_heads, kernel_size, scale)


@torch.library.custom_op(
    'mmsimvit::central_attention_backward', mutates_args=(),
    schema='(Tensor grad, Tensor query, Tensor key, Tensor? value, int num_heads, int kernel_size, float scale, str backend)'
           ' -> Tensor[]')
def _central_attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor | None, num_heads: int,
                                kernel_size: int, scale: float, backend: str) -> list[Tensor]:
    """The gradients of query, key and, if there is one, value."""
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value) if x is not None]
    implementation = _implementation(backend, query.device)
    implementation.backward(grad, query, *_key_and_value(key, value), num_heads, kernel_size, scale,
                            grads[0], *_key_and_value(*grads[1:]))
    return grads


@_central_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor | None, num_heads: int, kernel_size: int, scale: float,
      backend: str) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@_central_attention_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor | None, num_heads: int, kernel_size: int, scale: float,
      backend: str) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value) if x is not None]


# Multiplications and additions of whole windows, as a dense product of the same shapes counts them.
@register_flop_formula(torch.ops.mmsimvit.central_attention)
def _flops(query: torch.Size, key: torch.Size, value: torch.Size | None, num_heads: int, kernel_size: int, *_: object,
           **__: object) -> int:
    return 2 * 2 * prod(query) * kernel_size**2  # logits, weighted sum


@register_flop_formula(torch.ops.mmsimvit.central_attention_backward)
def _backward_flops(grad: torch.Size, *forward: Any, **__: object) -> int:
    return 5 * _flops(*forward) // 2  # the logits again, and gradients of weights, query, key and value


def _save(ctx: Any, inputs: tuple, output: Tensor | list[Tensor]) -> None:
    *tensors, ctx.num_heads, ctx.kernel_size, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _central_attention_backward(grad, *ctx.saved_tensors, ctx.num_heads, ctx.kernel_size, ctx.scale, ctx.backend)
    return *grads, *[None] * (7 - len(grads))


def _double_backward(ctx: Any, grads_of_grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    backends.warn_once('second derivatives of central attention come from its composite form, many times slower')
    with torch.enable_grad():
        # New views are variables of this graph alone, and yet connect it to theirs.
        tensors: list[Any] = [x if x is None else x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                              for x in ctx.saved_tensors]
        grad, query, *key_and_value = tensors
        out = composite.central_attention(query, *_key_and_value(*key_and_value), ctx.num_heads, ctx.kernel_size,
                                          ctx.scale, 0.0)
        inputs = [x for x in tensors if x is not None]
        grads = torch.autograd.grad(out, inputs[1:], grad, create_graph=True)
    grads = torch.autograd.grad(grads, inputs, grads_of_grads, create_graph=torch.is_grad_enabled())
    return *grads, *[None] * (8 - len(grads))


_central_attention.register_autograd(_backward, setup_context=_save)
_central_attention_backward.register_autograd(_double_backward, setup_context=_save)


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


def _autocast(query: Tensor, key: Tensor, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As the attention of torch does, float32 to the dtype of an autocast region."""
    device_type = query.device.type
    if device_type == 'meta' or not torch.is_autocast_enabled(device_type):
        return query, key, value
    dtype = torch.get_autocast_dtype(device_type)

    def lowered(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x

    return lowered(query), lowered(key), None if value is None else lowered(value)


def _check(query: Tensor, key: Tensor, value: Tensor | None, num_heads: int, kernel_size: int, scale: float | None,
           dropout_p: float) -> float:
    """Refuse what is not computed; give the scale."""
    shape = query.shape
    for name, x in (('query', query), ('key', key), ('value', value)):
        if x is None:
            continue
        expected = (*shape[:-1], 2 * shape[-1]) if value is None and name == 'key' else shape
        if x.dim() != 4 or x.shape != expected:
            raise ValueError('query, key and value must have one shape (B, H, W, C), or key (B, H, W, 2C) without value; '
                             f'query has {tuple(shape)}, {name} has {tuple(x.shape)}')
        if x.dtype != query.dtype or not x.is_floating_point():
            raise ValueError('query, key and value must have one floating-point dtype; '
                             f'query has {query.dtype}, {name} has {x.dtype}')
        if x.device != query.device:
            raise ValueError('query, key and value must be on one device; '
                             f'query is on {query.device}, {name} on {x.device}')
    channels = shape[-1]
    if num_heads < 1 or channels < 1 or channels % num_heads:
        raise ValueError(f'num_heads must divide the channels; got {num_heads} heads and {channels} channels')
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be odd and positive, so that a window has a centre; got {kernel_size}')
    if not 0 <= dropout_p < 1:
        raise ValueError(f'dropout_p must lie in [0, 1), got {dropout_p}')
    return (channels // num_heads)**-0.5 if scale is None else scale
