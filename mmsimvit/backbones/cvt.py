"""CvT: Introducing Convolutions to Vision Transformers (Wu et al., ICCV 2021, arXiv 2103.15808)."""
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import layers
from ..layers import Block, ConvEmbed, divide, multi_head_attention
from ..weights import Published
from .base import is_sequence
from .pyramid import PyramidBackbone

EPS = 1e-5  # of all layer norms


class ConvProjection(nn.Module):
    """Queries, keys or values: a depth-wise convolution and a batch norm of the map, then a linear layer of all tokens."""

    def __init__(self, dims: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(dims, dims, 3, stride, padding=1, groups=dims, bias=False)
        self.norm = nn.BatchNorm2d(dims)
        self.linear = nn.Linear(dims, dims)

    def forward(self, x: Tensor, token: Tensor | None) -> Tensor:
        """``(B, C, H, W)``, and ``(B, 1, C)`` if there is a class token -> ``(B, N, C)``, the class token first."""
        # A trace would ask whether a convolution with a stride gives one row. So it gives one more, which is dropped.
        index = None
        if torch.compiler.is_compiling() and self.conv.stride[0] > 1 and not self.norm.training:
            index = self._index_tokens(x, first=0 if token is None else 1)
            x = F.pad(x, (0, self.conv.stride[1], 0, self.conv.stride[0]))
        x = self.norm(self.conv(x)).permute(0, 2, 3, 1).flatten(1, 2)
        if token is not None:
            x = torch.cat([token, x], 1)
        return self.linear(x if index is None else x[:, index])

    def _index_tokens(self, x: Tensor, first: int) -> Tensor:
        """The tokens of a map among those of one that is padded to have another row and column."""
        rows, columns = ((length + stride - 1) // stride for length, stride in zip(x.shape[2:], self.conv.stride))
        row, column = divide(torch.arange(rows * columns + first, device=x.device) - first, columns)
        return (row * (columns + 1) + column + first).clamp(min=0)  # less than 0 for the class token, which comes first


class Attention(nn.Module):
    """Multi-head self-attention of every pixel, and the class token, to every second row and column and the class token."""

    def __init__(self, dims: int, num_heads: int, has_token: bool):
        super().__init__()
        self.num_heads = num_heads
        self.has_token = has_token
        self.q = ConvProjection(dims, stride=1)
        self.k = ConvProjection(dims, stride=2)
        self.v = ConvProjection(dims, stride=2)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """``(B, N, C)``, the class token before the ``height * width`` pixels if there is one -> ``(B, N, C)``."""
        token = None
        if self.has_token:
            token, x = x[:, :1], x[:, 1:]
        x = x.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        query, key, value = self.q(x, token), self.k(x, token), self.v(x, token)
        # As published, logits are divided by the root of all channels, not of a head's.
        return self.proj(multi_head_attention(query, key, value, self.num_heads, scale=query.shape[-1]**-0.5))


class FFN(layers.FFN):
    """Feed-forward network with an approximate GELU, ``x * sigmoid(1.702 * x)``."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        return self.fc2(F.silu(1.702 * self.fc1(x)) / 1.702)  # in this form, one hidden map less is kept for the gradients


class Stage(layers.Stage):
    """A stage whose blocks take tokens, ``(B, N, C)``, and the height and width of the map; the class token comes first."""

    def __init__(self, patch_embed: nn.Module, blocks: Sequence[Block], with_cp: bool, token_dims: int | None):
        super().__init__(patch_embed, blocks, with_cp)
        self.cls_token = nn.Parameter(torch.empty(1, 1, token_dims)) if token_dims else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the class token from a normal distribution with a deviation of 0.02, cut at 2."""
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, H', W')``, channels last in memory, without the class token."""
        x = self.patch_embed(x)
        height, width = x.shape[1:3]
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        for block in self.blocks:
            x = self.run_block(block, x, height, width)
        if self.cls_token is not None:
            x = x[:, 1:]
        return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)


@MODELS.register_module()
class CvT(PyramidBackbone):
    """CvT: three stages of full self-attention, whose queries, keys and values are made by depth-wise convolutions; no
    positional encoding; a class token in the last stage, which takes part in its attention and is no output.

    The outputs are the maps of the published classification code on images of any size. They have no norms. No dense form was
    published; for one, set ``map_norms``, as the configs do. Maps have the sizes that the convolutions give: the first
    ``(H - 3) // 4 + 1`` rows, each other half of the rows before, rounded up. Columns follow the same rule.

    Args:
        arch: ``'13'``, ``'21'`` or ``'w24'``, or a dict of ``embed_dims``, ``depths``, ``num_heads`` and ``mlp_ratios``, each
            with one number for every stage, and ``map_norms``, the stages, from 0, whose maps are normalised.
        in_channels: channels of the input image.
        drop_path_rate: drop path rate of the last block, as published 0.1 for ``13`` and ``21`` and 0.3 for ``w24``. The
            rate grows linearly from 0 at the first block of the last stage. Other stages have none.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the errors and,
    but for the sizes of the maps, the outputs.
    """

    patch_sizes = (4, 2, 2)
    adds_norms = True
    arch_zoo = {
        '13': dict(embed_dims=(64, 192, 384), depths=(1, 2, 10), num_heads=(1, 3, 6), mlp_ratios=(4, 4, 4), map_norms=()),
        '21': dict(embed_dims=(64, 192, 384), depths=(1, 4, 16), num_heads=(1, 3, 6), mlp_ratios=(4, 4, 4), map_norms=()),
        'w24': dict(embed_dims=(192, 768, 1024), depths=(2, 2, 20), num_heads=(3, 12, 16), mlp_ratios=(4, 4, 4), map_norms=()),
    }
    arch_rules = {
        'map_norms': ('stages among 0, 1, 2', lambda value: is_sequence(value) and all(i in range(3) for i in value)),
    }
    published = Published(
        url='https://github.com/microsoft/CvT',
        licence='MIT',
        released=('13', '21', 'w24'),
        rename=(
            (r'^stage(\d)\.', r'stages.\1.'),
            (r'\.attn\.conv_proj_([qkv])\.conv\.', r'.attn.\1.conv.'),
            (r'\.attn\.conv_proj_([qkv])\.bn\.', r'.attn.\1.norm.'),
            (r'\.attn\.proj_([qkv])\.', r'.attn.\1.linear.'),
            (r'\.mlp\.', '.ffn.'),
        ),
        drop=r'^head\.|^norm\.',  # the classifier, and the norm of the class token that it reads
    )

    def __init__(self,
                 arch: str | int | Mapping = '13',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2),
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.1,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 **arch_overrides: Any):
        if isinstance(arch, int):  # --cfg-options model.backbone.arch=21, which mmengine takes for a number in any quotes
            arch = str(arch)
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """The last stage has a class token."""
        dims, num_heads, mlp_ratio = (self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios'))
        has_token = index == len(self.patch_sizes) - 1
        patch_embed = ConvEmbed(in_channels, dims, 3, 2, 1) if index else ConvEmbed(in_channels, dims, 7, 4, 2)
        blocks = [Block(Attention(dims, num_heads, has_token), FFN(dims, dims * mlp_ratio), dims, rate, EPS)
                  for rate in drop_path_rates]
        return Stage(patch_embed, blocks, self.with_cp, dims if has_token else None)

    def norm_layer(self, index: int) -> partial | None:
        """A layer norm of the maps that ``map_norms`` names."""
        return partial(nn.LayerNorm, eps=EPS) if index in self.arch['map_norms'] else None

    def get_drop_path_rates(self) -> list[list[float]]:
        """Those of the blocks of each stage: zero but in the last, where they are linear."""
        *others, last = self.arch['depths']
        return [*([0.] * depth for depth in others), np.linspace(0, self.drop_path_rate, last).tolist()]
