"""Central and neighborhood attention written to be checked by eye."""
import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, kernel_size: int, scale: float,
              dropout_p: float, shifted: bool) -> Tensor:
    """Three times ``(B, H, W, C)`` -> ``(B, H, W, C)``; unfolds all k * k neighbours of every pixel."""
    reach = kernel_size // 2
    rows, columns = (_first(size, kernel_size, query.device) if shifted else torch.arange(size, device=query.device)
                     for size in query.shape[1:3])
    if not shifted:
        key, value = (F.pad(x, (0, 0, reach, reach, reach, reach)) for x in (key, value))
    query = query.unflatten(-1, (num_heads, -1))  # (B, H, W, heads, C / heads)
    key, value = (x.unfold(1, kernel_size, 1).unfold(2, kernel_size, 1)[:, rows][:, :, columns].flatten(4).mT
                  .unflatten(-1, (num_heads, -1)) for x in (key, value))  # (B, H, W, k * k, heads, C / heads)
    logits = torch.einsum('bhwnd,bhwknd->bhwnk', query, key) * scale
    if bias is not None:
        taps = torch.arange(kernel_size, device=query.device)
        down, right = (first[:, None] + taps - torch.arange(len(first), device=query.device)[:, None] + kernel_size - 1
                       for first in (rows, columns))
        logits = logits + bias[:, down[:, None, :, None], right[None, :, None, :]].flatten(3).permute(1, 2, 0, 3)
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    weights = F.dropout(weights, dropout_p).to(value.dtype)
    return torch.einsum('bhwnk,bhwknd->bhwnd', weights, value).flatten(3)


def _first(size: int, kernel_size: int, device: torch.device) -> Tensor:
    """The first row or column in the window of each pixel along a side of the map."""
    return (torch.arange(size, device=device) - kernel_size // 2).clamp(0, size - kernel_size)
