"""Central attention written to be checked by eye."""
import torch
import torch.nn.functional as F
from torch import Tensor


def central_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, kernel_size: int, scale: float,
                      dropout_p: float) -> Tensor:
    """Three times ``(B, H, W, C)`` -> ``(B, H, W, C)``; unfolds all k * k neighbours of every pixel."""
    reach = kernel_size // 2
    query = query.unflatten(-1, (num_heads, -1))  # (B, H, W, heads, C / heads)
    key, value = (F.pad(x, (0, 0, reach, reach, reach, reach)).unfold(1, kernel_size, 1).unfold(2, kernel_size, 1)
                  .flatten(4).mT.unflatten(-1, (num_heads, -1)) for x in (key, value))  # (B, H, W, k * k, heads, C / heads)
    logits = torch.einsum('bhwnd,bhwknd->bhwnk', query, key) * scale
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    weights = F.dropout(weights, dropout_p).to(value.dtype)
    return torch.einsum('bhwnk,bhwknd->bhwnd', weights, value).flatten(3)
