from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import multi_head_attention
from .windows import merge_windows, split_into_windows


class CrossShapedAttention(nn.Module):
    """Self-attention inside stripes, vertical ones for the first half of the heads and horizontal ones for the others; without
    a stripe width, of all heads over the whole map (CSWin Transformer, 2107.00652, section 3.2).

    Position enters by LePE, a depth-wise convolution of the values that sees no other stripe. Maps are padded with zeros on
    both sides to whole stripes, after the projection. The padding is not masked, as published.
    """

    lepe: Any  # an nn.ModuleList of convolutions, which torch's types cannot say

    def __init__(self, dims: int, num_heads: int, stripe_width: int | None):
        super().__init__()
        branches = 1 if stripe_width is None else 2
        self.num_heads = num_heads // branches
        self.stripe_width = stripe_width
        self.qkv = nn.Linear(dims, 3 * dims)
        self.lepe = nn.ModuleList(nn.Conv2d(dims // branches, dims // branches, 3, padding=1, groups=dims // branches)
                                  for _ in range(branches))
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        parts = self.qkv(x).chunk(3 * len(self.lepe), -1)
        if self.stripe_width is None:
            return self.proj(self.attend(parts, self.lepe[0].weight, self.lepe[0].bias))
        # Vertical stripes are horizontal ones of the transposed map: only so is a stripe one piece of memory.
        vertical = self.attend([part.transpose(1, 2) for part in parts[::2]], self.lepe[0].weight.transpose(2, 3),
                               self.lepe[0].bias).transpose(1, 2)
        horizontal = self.attend(parts[1::2], self.lepe[1].weight, self.lepe[1].bias)
        return self.proj(torch.cat([vertical, horizontal], -1))

    def attend(self, parts: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
        """Attention and LePE in horizontal stripes.

        Args:
            parts: query, key and value, ``(B, H, W, C')`` each.
            weight, bias: of the convolution, ``(C', 1, 3, 3)`` and ``(C', )``.

        Returns:
            ``(B, H, W, C')``.
        """
        (batch, height, width, channels), size = parts[0].shape, (self.stripe_width, None)
        query, key, value = (split_into_windows(part, size, centred=True) for part in parts)
        stripe = (self.stripe_width or height, width)
        lepe = F.conv2d(value.unflatten(1, stripe).permute(0, 3, 1, 2), weight, bias, padding=1, groups=channels)
        x = multi_head_attention(query, key, value, self.num_heads).unflatten(1, stripe) + lepe.permute(0, 2, 3, 1)
        return merge_windows(x, size, batch, height, width, centred=True)
