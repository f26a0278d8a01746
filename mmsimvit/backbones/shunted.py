"""Shunted Transformer: Shunted Self-Attention via Multi-Scale Token Aggregation (Ren et al., CVPR 2022, arXiv 2111.15193)."""
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import layers
from ..layers import Block, ConvEmbed, ConvFFN, init_as_pvt, multi_head_attention, pad_for_patches
from ..ops.backends import is_exporting
from ..weights import Published, stage_before
from .base import is_positive, is_sequence
from .pyramid import PyramidBackbone

EPS = 1e-6  # of the norms of blocks and maps; those of patch embeddings and inside the attention have 1e-5


class Stem(nn.Module):
    """A quarter of the resolution: a strided convolution, others that keep the size, and a projection of 2 x 2 patches."""

    def __init__(self, in_channels: int, embed_dims: int, num_convs: int):
        super().__init__()
        convs = [nn.Conv2d(in_channels, embed_dims, 7, stride=2, padding=3, bias=False),
                 *(nn.Conv2d(embed_dims, embed_dims, 3, padding=1, bias=False) for _ in range(num_convs))]
        modules = [module for conv in convs for module in (conv, nn.BatchNorm2d(embed_dims), nn.ReLU())]
        self.conv = nn.Sequential(*modules, nn.Conv2d(embed_dims, embed_dims, 2, stride=2))
        self.norm = nn.LayerNorm(embed_dims, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / 4), ceil(W / 4), C)``."""
        *convs, projection = self.conv
        x = x.contiguous(memory_format=torch.channels_last)  # as all that follows
        for module in convs:
            x = module(x)
        return self.norm(projection(pad_for_patches(x, 2)).permute(0, 2, 3, 1))


class ReducedTokens(nn.Module):
    """Keys and values for half of the heads, from a map reduced by one rate."""

    def __init__(self, dims: int, rate: int):
        super().__init__()
        self.rate = rate
        self.reduction = nn.Conv2d(dims, dims, rate, rate)
        self.norm = nn.LayerNorm(dims, eps=1e-5)
        self.kv = nn.Linear(dims, dims)
        self.local_conv = nn.Conv2d(dims // 2, dims // 2, 3, padding=1, groups=dims // 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``(B, H, W, C)`` -> keys and values, ``(B, N, C / 2)`` each, and a bias of the logits or None.

        There are ``max(H // rate, 1)`` rows and ``max(W // rate, 1)`` columns: a remainder is left out, as published.
        """
        height, width = x.shape[1:3]
        bias = kept = None
        if is_exporting():
            # The graph would distinguish whether there is one row or several. So it has tokens of the remainder too, which
            # neither queries nor the local convolution see.
            x = self.reduction(F.pad(x, (0, 0, 0, self.rate - 1, 0, self.rate - 1)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            rows, columns = (self._is_whole(*sizes, x.device) for sizes in zip(x.shape[1:3], (height, width)))
            kept = rows[:, None] & columns
            bias = x.new_zeros(kept.shape).masked_fill(~kept, float('-inf')).flatten()[None, None]
        else:
            if height < self.rate or width < self.rate:
                x = F.pad(x, (0, 0, 0, max(self.rate - width, 0), 0, max(self.rate - height, 0)))
            x = self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        key, value = self.kv(F.gelu(self.norm(x))).chunk(2, -1)
        if kept is not None:
            value = value * kept[..., None]
        value = value + self.local_conv(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return key.flatten(1, 2), value.flatten(1, 2), bias

    def _is_whole(self, count: int, length: int, device: torch.device) -> Tensor:
        """Which rows or columns of tokens have no padding in them, ``(count,)``; the first is taken in any case."""
        index = torch.arange(count, device=device)
        return ((index + 1) * self.rate <= length) | (index == 0)


class ShuntedAttention(nn.Module):
    """Self-attention whose first heads attend to coarse tokens, and the others to finer ones, of half the rate."""

    def __init__(self, dims: int, num_heads: int, rate: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dims, dims)
        self.tokens = nn.ModuleList((ReducedTokens(dims, rate), ReducedTokens(dims, rate // 2)))
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        queries = self.q(x).flatten(1, 2).chunk(2, -1)
        outs = []
        for query, tokens in zip(queries, self.tokens):
            key, value, bias = tokens(x)
            outs.append(multi_head_attention(query, key, value, self.num_heads // 2, bias))
        return self.proj(torch.cat(outs, -1).view_as(x))


class Attention(nn.Module):
    """Self-attention of every pixel to every pixel. Here the local term of the values is added to the result."""

    def __init__(self, dims: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dims, dims)
        self.kv = nn.Linear(dims, 2 * dims)
        self.local_conv = nn.Conv2d(dims, dims, 3, padding=1, groups=dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        key, value = self.kv(x).chunk(2, -1)
        local = self.local_conv(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        query, key, value = (y.flatten(1, 2) for y in (self.q(x), key, value))
        return self.proj(multi_head_attention(query, key, value, self.num_heads).view_as(x) + local)


class Stage(layers.Stage):
    """A stage that recomputes its patch embedding too: the stem's maps are larger than any of the blocks'."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, H', W')``, channels last in memory."""
        x = self.run_block(self.patch_embed, x)
        for block in self.blocks:
            x = self.run_block(block, x)
        return x.permute(0, 3, 1, 2)


@MODELS.register_module()
class Shunted(PyramidBackbone):
    """Shunted Transformer: attention to keys and values of two scales in stages 1 to 3, full attention in stage 4, no
    positional encoding.

    On heights and widths that are multiples of 4 the outputs are the published model's. In images of other sizes a row or
    column that the stem's last convolution would leave out, as the published code does, is completed with zeros at the bottom
    and right. So are maps that are smaller than the rate by which their keys are reduced, which the published code does not
    take; of larger maps the reductions leave out a remainder, as published. The stem's batch norms are best synchronised over
    processes with few images each: ``sync_bn='torch'`` in a config.

    Args:
        arch: ``t``, ``s`` or ``b``, or a dict of ``embed_dims``, ``depths``, ``num_heads``, ``mlp_ratios`` and
            ``reduction_rates``, each with one number for every stage, and ``stem_convs``, the number of convolutions in the
            stem that keep the size. By its rate each side of a stage's map is divided for half of the heads, and by half of
            the rate for the others; a rate of 1 stands for full attention.
        in_channels: channels of the input image.
        drop_path_rate: as published for ImageNet 0.1 for ``t``, 0.2 for ``s`` and 0.3 for ``b``.
        with_cp: recompute the stem, the patch embeddings and each block in the backward pass.

    ``out_indices``, ``frozen_stages`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the outputs and the errors.

    Raises:
        ValueError: also for an odd number of heads with a rate above 1.
    """

    carries_norms = True
    arch_zoo = {
        name: dict(embed_dims=(64, 128, 256, 512), depths=depths, num_heads=(2, 4, 8, 16), mlp_ratios=(8, 8, 4, 4),
                   reduction_rates=(8, 4, 2, 1), stem_convs=stem_convs)
        for name, depths, stem_convs in (('t', (1, 2, 4, 1), 0), ('s', (2, 4, 12, 1), 1), ('b', (3, 4, 24, 2), 2))
    }
    arch_rules = {
        'reduction_rates': ('4 numbers, one for each stage, each 1 or even',
                            lambda value: is_sequence(value) and len(value) == 4
                            and all(is_positive(rate) and (rate == 1 or rate % 2 == 0) for rate in value)),
        'stem_convs': ('a whole number from 0 on', lambda value: isinstance(value, Integral) and int(value) >= 0),
    }
    published = Published(
        url='https://github.com/OliverRensu/Shunted-Transformer',
        licence='none is given, so ask the authors before you pass their weights on',
        released=('t', 's', 'b'),
        rename=(
            (r'^(patch_embed|block|norm)([1-4])\.', stage_before),
            (r'^(stages\.\d)\.block\.', r'\1.blocks.'),
            (r'\.attn\.(sr|norm|kv|local_conv)([12])\.', lambda m: f'.attn.tokens.{int(m[2]) - 1}.{m[1]}.'),
            (r'\.sr\.', '.reduction.'),
            (r'\.mlp\.', '.ffn.'),
            (r'\.dwconv\.dwconv\.', '.dwconv.'),
        ),
        drop=r'^head\.',
        classifiers=('t', 's', 'b'),
    )

    def __init__(self, arch: str | Mapping = 's', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1, drop_path_rate: float = 0.2, with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None, **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        for num_heads, rate in zip(self.arch['num_heads'], self.arch['reduction_rates']):
            if rate > 1 and num_heads % 2:
                raise ValueError('half of the heads have keys of their own where reduction_rates are above 1, so num_heads '
                                 f'must be even there, got {num_heads} with a rate of {rate}')
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """The stem comes before the first stage's blocks."""
        dims, num_heads, mlp_ratio, rate = (
            self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios', 'reduction_rates'))
        patch_embed = ConvEmbed(in_channels, dims, 3, 2) if index else Stem(in_channels, dims, self.arch['stem_convs'])
        blocks = [Block(Attention(dims, num_heads) if rate == 1 else ShuntedAttention(dims, num_heads, rate),
                        ConvFFN(dims, dims * mlp_ratio, adds_hidden=True), dims, drop_path_rate, EPS)
                  for drop_path_rate in drop_path_rates]
        return Stage(patch_embed, blocks, self.with_cp)

    def norm_layer(self, index: int) -> partial:
        """A layer norm of every map."""
        return partial(nn.LayerNorm, eps=EPS)

    def init_random_weights(self) -> None:
        """Draw the published random initialisation."""
        init_as_pvt(self)
