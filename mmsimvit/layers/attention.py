import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.backends import is_exporting


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, bias: Tensor | None = None,
                         dropout_p: float = 0.0, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention (Attention Is All You Need, 1706.03762, section 3.2) in heads.

    Args:
        query: ``(B, N, C)``; head ``h`` has the channels from ``h * C / num_heads`` on.
        key, value: ``(B, M, C)``.
        num_heads: how many heads share the channels.
        bias: added to the logits, ``(num_heads, N, M)`` or ``(B, num_heads, N, M)``.
        dropout_p: dropout on the attention weights.
        scale: factor of the products of queries and keys; None for one over the root of a head's channels.
        mask: which keys take part where there is no bias, ``(B, 1, 1, M)``; all if None.

    Returns:
        ``(B, N, C)``.
    """
    # A single head is put in front: where its dimension is transposed, a trace asks how the lengths of the two compare.
    query, key, value = (x[:, None] if num_heads == 1 else x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
                         for x in (query, key, value))
    if bias is not None:
        # Autocast leaves that of parameters as it is. Three dimensions have no fast kernel.
        bias = (bias if bias.dim() == 4 else bias[None]).to(query.dtype)
        # On a CPU no kernel differentiates a bias, and what torch falls back to looks for rows that are masked as a whole. To
        # export, versions of torch take one bias for all images as a sign that there is never one image.
        if dropout_p == 0 and (is_exporting() or (query.device.type == 'cpu' and not torch.compiler.is_compiling()
                                                  and (bias.requires_grad or is_wrapped(bias)))):
            logits = (query * (query.shape[-1]**-0.5 if scale is None else scale)) @ key.transpose(-2, -1)
            return (logits.add_(bias).softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
    channels = query.shape[-1]
    if query.is_cuda and channels % 8:  # which no fused kernel takes
        query, key, value, scale = pad_heads(query, key, value, scale)
    mask = mask if bias is None else bias
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p, scale=scale)
    return out[..., :channels].transpose(1, 2).flatten(2)


def is_wrapped(x: Tensor) -> bool:
    """Whether ``torch.func`` stands around a tensor, ``(B, N)`` or any other, which then tells neither numbers nor gradient."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def pad_heads(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """Query ``(B, heads, N, C)``, key and value ``(B, heads, M, C)`` with zero channels up to a multiple of 8, which change no
    product and give zeros; and the scale of the products without them."""
    channels = query.shape[-1]
    query, key, value = (F.pad(x, (0, -channels % 8)) for x in (query, key, value))
    return query, key, value, channels**-0.5 if scale is None else scale
