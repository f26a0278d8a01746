"""CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows (Dong et al., CVPR 2022,
arXiv 2107.00652)."""
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import FFN, Block, ConvEmbed, Stage, merge_windows, multi_head_attention, split_into_windows
from ..weights import Published, stage_before
from .base import is_numbers
from .pyramid import PyramidBackbone

EPS = 1e-5


class CrossShapedAttention(nn.Module):
    """Self-attention inside stripes, vertical ones for the first half of the heads and horizontal ones for the others; without
    a stripe width, of all heads over the whole map.

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


@MODELS.register_module()
class CSWin(PyramidBackbone):
    """CSWin: attention in cross-shaped windows in stages 1 to 3, over the whole map in stage 4.

    The outputs are the published segmentation code's on images of any size that it takes. Its first map is rounded down: it
    has ``floor((H - 3) / 4) + 1`` rows, and the others half of the one before, rounded up. Images below 3 pixels, which it
    does not take, are padded with zeros at the bottom and right.

    Args:
        arch: ``tiny``, ``small``, ``base`` or ``large``, or a dict of ``embed_dims``, ``depths``, ``num_heads`` and
            ``mlp_ratios``, each with one number for every stage, and ``stripe_widths``, those of stages 1 to 3 in pixels of
            their maps: (1, 2, 7), but (1, 2, 12) in classifiers that were published for 384 x 384 pixels.
        in_channels: channels of the input image.
        drop_path_rate: as published for ``tiny``, ``small``, ``base``, ``large``: for ImageNet 0.2, 0.4, 0.5, 0.2 (after
            ImageNet-22K), in segmentors 0.3, 0.4, 0.6.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the outputs
    and the errors.
    Each returned map has a norm of its own: name in ``out_indices`` the maps that are used and no others (with
    ``FPN(start_level=1)``, stages 1 to 3), or distributed training stops at parameters without gradient.

    Raises:
        ValueError: also for odd ``num_heads`` in stages 1 to 3.
    """

    adds_norms = True
    arch_zoo = {
        name: dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads, mlp_ratios=(4, 4, 4, 4), stripe_widths=(1, 2, 7))
        for name, embed_dims, depths, num_heads in (
            ('tiny', (64, 128, 256, 512), (1, 2, 21, 1), (2, 4, 8, 16)),
            ('small', (64, 128, 256, 512), (2, 4, 32, 2), (2, 4, 8, 16)),
            ('base', (96, 192, 384, 768), (2, 4, 32, 2), (4, 8, 16, 32)),
            ('large', (144, 288, 576, 576), (2, 4, 32, 2), (6, 12, 24, 24)),  # widths grow as the heads do
        )
    }
    arch_rules = {'stripe_widths': ('3 positive whole numbers, one for each stage but the last',
                                    lambda value: is_numbers(value, 3))}
    published = Published(
        url='https://github.com/microsoft/CSWin-Transformer',
        licence='MIT',
        released=('tiny', 'small', 'base', 'large'),
        rename=(
            (r'^stage1_conv_embed\.0\.', 'stages.0.patch_embed.proj.'),
            (r'^stage1_conv_embed\.2\.', 'stages.0.patch_embed.norm.'),
            (r'^merge([1-3])\.conv\.', r'stages.\1.patch_embed.proj.'),
            (r'^merge([1-3])\.norm\.', r'stages.\1.patch_embed.norm.'),
            (r'^stage([1-4])\.', lambda m: f'stages.{int(m[1]) - 1}.blocks.'),
            (r'^(norm)([1-4])\.', stage_before),
            (r'^norm\.', 'stages.3.norm.'),  # of classifiers: in its place, where published segmentors have a new one
            (r'(\.blocks\.\d+)\.(qkv|proj)\.', r'\1.attn.\2.'),
            (r'\.attns\.([01])\.get_v\.', r'.attn.lepe.\1.'),
            (r'\.mlp\.', '.ffn.'),
        ),
        drop=r'^head\.',
        classifiers=('tiny', 'small', 'base', 'large'),
    )

    def __init__(self,
                 arch: str | Mapping = 'tiny',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.2,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        if any(heads % 2 for heads in self.arch['num_heads'][:3]):
            raise ValueError('num_heads of stages 1 to 3 must be even, one half for the vertical stripes and one for the '
                             f'horizontal ones, got {self.arch["num_heads"]}')
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Stripes in all stages but the last."""
        dims, num_heads, mlp_ratio = (self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios'))
        patch_embed = ConvEmbed(in_channels, dims, 3, 2, 1) if index else ConvEmbed(in_channels, dims, 7, 4, 2)
        stripe_width = (*self.arch['stripe_widths'], None)[index]
        blocks = [Block(CrossShapedAttention(dims, num_heads, stripe_width), FFN(dims, dims * mlp_ratio), dims, rate, EPS)
                  for rate in drop_path_rates]
        return Stage(patch_embed, blocks, self.with_cp)

    def norm_layer(self, index: int) -> partial:
        """A layer norm of every map."""
        return partial(nn.LayerNorm, eps=EPS)
