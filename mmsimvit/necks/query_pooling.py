"""One vector of a map by a learned query, as GPViT's classifier has it (Yang et al., ICLR 2023, arXiv 2212.06795)."""
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import multi_head_attention


@MODELS.register_module()
class QueryPooling(BaseModule):
    """A learned query attends to the pixels of each map, which are not projected as values.

    Args:
        in_channels: channels of the maps.
        num_heads: of attention.
        init_cfg: as in mmengine; None for normal distributions with a deviation of 0.02.

    Raises:
        ValueError: for ``in_channels`` that are no multiple of ``num_heads``.
    """

    def __init__(self, in_channels: int, num_heads: int, init_cfg: dict | list[dict] | None = None):
        super().__init__(init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02))
        if in_channels % num_heads:
            raise ValueError(f'in_channels must be a multiple of num_heads, got {in_channels} and {num_heads}')
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(1, 1, in_channels))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.norm = nn.LayerNorm(in_channels, eps=1e-5)
        self.key = nn.Linear(in_channels, in_channels, bias=False)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps ``(B, C, H, W)`` -> for each ``(B, C)``."""
        return tuple(self._pool(x.flatten(2).transpose(1, 2)) for x in inputs)

    def _pool(self, x: Tensor) -> Tensor:
        query = self.norm(self.query).expand(x.shape[0], -1, -1)
        return multi_head_attention(query, self.key(x), x, self.num_heads)[:, 0]
