"""ResFormer: Scaling ViTs with Multi-Resolution Training (Tian et al., CVPR 2023, arXiv 2212.00776)."""
from collections.abc import Mapping, Sequence
from functools import partial
from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import FFN, Block, PatchEmbed, merge_windows, multi_head_attention, split_into_windows
from ..weights import Published
from .base import is_positive, is_sequence
from .plain import PlainBackbone

EPS = 1e-6  # of all layer norms, and of the lengths that positions are divided by


class GlobalPosition(nn.Module):
    """Positions as sines and cosines of the row and the column relative to the map's size, under a depth-wise convolution.

    Section 3.3 of the paper. Rows and columns count from 1, so that the last of each lies at almost 2 pi in maps of any size.
    """

    def __init__(self, dims: int):
        super().__init__()
        self.conv = nn.Conv2d(dims, dims, 3, padding=1, groups=dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``, which is ``x`` with positions added."""
        (height, width), dtype = x.shape[1:3], self.conv.weight.dtype
        row, column = (self.make_waves(length, x.device) for length in (height, width))
        waves = torch.cat([row[:, None].expand(-1, width, -1), column.expand(height, -1, -1)], -1)
        return x + self.conv(waves.to(dtype).permute(2, 0, 1)[None]).permute(0, 2, 3, 1)

    def make_waves(self, length: int, device: torch.device) -> Tensor:
        """``(length, C / 2)``, of one axis: sines in even channels, cosines in odd ones, two of the same frequency in turn. In
        float32 for models of less, for positions close to each other have much the same waves."""
        dtype = torch.promote_types(self.conv.weight.dtype, torch.float32)
        channels = self.conv.in_channels // 2
        channel = torch.arange(channels, device=device)
        odd = (channel % 2).to(dtype)
        position = torch.arange(1, length + 1, device=device).to(dtype)
        # The last position instead of the length, which a trace would have as a number outside of its tensors.
        angle = 2 * pi * position / (position[-1:] + EPS)
        period = 10000**((channel - odd) / channels)
        return (angle[:, None] / period + odd * (pi / 2)).sin()


class LocalPosition(nn.Conv2d):
    """A depth-wise convolution of values, with the same kernels for every head. It begins with zeros.

    Args:
        dims: channels of a head.
    """

    def __init__(self, dims: int):
        super().__init__(dims, dims, 3, padding=1, groups=dims)

    def reset_parameters(self) -> None:
        """Set all to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` in heads -> ``(B, H, W, C)``."""
        heads = x.shape[-1] // self.in_channels
        bias = None if self.bias is None else self.bias.repeat(heads)
        x = F.conv2d(x.permute(0, 3, 1, 2), self.weight.repeat(heads, 1, 1, 1), bias, padding=1, groups=x.shape[-1])
        return x.permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Full self-attention of the map's pixels and of the class token, if there is one, with the local positions of the pixels'
    values added."""

    def __init__(self, dims: int, num_heads: int, has_cls_token: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.skipped = int(has_cls_token)
        self.qkv = nn.Linear(dims, 3 * dims)
        self.local = LocalPosition(dims // num_heads)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """``(B, 1 + height * width, C)``, the class token first, or without it ``(B, height * width, C)`` -> the same."""
        query, key, value = self.qkv(x).chunk(3, -1)
        local = self.local(value[:, self.skipped:].unflatten(1, (height, width))).flatten(1, 2)
        x = multi_head_attention(query, key, value, self.num_heads)
        return self.proj(x + F.pad(local, (0, 0, self.skipped, 0)))  # the class token has no place


class WindowAttention(Attention):
    """The same inside of square windows, as ViTDet has them (2203.16527): the input is padded with zeros at the bottom and
    right to whole windows, which is not masked, and there is no class token. Local positions do not see beyond a window."""

    def __init__(self, dims: int, num_heads: int, window_size: int):
        super().__init__(dims, num_heads, has_cls_token=False)
        self.window_size = window_size, window_size

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """``(B, height * width, C)`` -> the same."""
        windows = split_into_windows(x.unflatten(1, (height, width)), self.window_size)
        windows = super().forward(windows, *self.window_size)
        return merge_windows(windows, self.window_size, x.shape[0], height, width).flatten(1, 2)


@MODELS.register_module()
class ResFormer(PlainBackbone):
    """ResFormer: a plain vision transformer with a class token, whose positions come from convolutions, so that it serves
    images of other sizes than it was trained with.

    The outputs are the published code's on squares of whole patches, which is all that this takes. Images of any size are
    padded with zeros at the bottom and right to whole patches of 16 x 16 pixels. All maps have the stride 16; a neck makes a
    pyramid of them. The last block's map is normalised, as published. Maps of other blocks are as the blocks give them, as in
    MMPreTrain and MMSegmentation.

    Args:
        arch: ``tiny``, ``small`` or ``base``, or a dict of ``embed_dims``, ``depth``, ``num_heads``, ``mlp_ratio`` and
            ``window_sizes``: None, as published, or in patches one for each block, None for the whole map. With windows there
            is no class token, which detectors do without, as ViTDet does.
        in_channels: channels of the input image.
        out_indices: blocks, counted from 0; -1 for the last alone.
        drop_path_rate: drop path rate of the last block, as published 0.1, for ``base`` 0.2. The rate grows linearly from 0 at
            the first.
        out_type: ``featmap`` for maps, ``cls_token`` for the class token, which the published classifier reads, ``raw`` for
            all tokens. Nothing of the last block's local positions is in the class token.

    ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PlainBackbone``, as are the outputs and the errors.

    Raises:
        ValueError: also for odd ``embed_dims``.
    """

    has_cls_token = True
    arch_zoo = {
        'tiny': dict(embed_dims=192, depth=12, num_heads=3, mlp_ratio=4, window_sizes=None),
        'small': dict(embed_dims=384, depth=12, num_heads=6, mlp_ratio=4, window_sizes=None),
        'base': dict(embed_dims=768, depth=12, num_heads=12, mlp_ratio=4, window_sizes=None),
    }
    arch_rules = {'window_sizes': (
        'None, or a list with a positive whole number or None for each block',
        lambda value: value is None or (
            is_sequence(value) and all(size is None or is_positive(size) for size in value)))}
    published = Published(
        url='https://github.com/ruitian12/resformer',
        licence='MIT',
        released=('tiny', 'small', 'base'),
        rename=(
            (r'^pos_embed\.embed_layer\.', 'pos_embed.conv.'),
            (r'\.attn\.get_v\.', '.attn.local.'),
            (r'\.mlp\.', '.ffn.'),
            (r'^norm\.', 'norms.11.'),  # all have twelve blocks
        ),
        drop=r'^head\.',
        classifiers=('tiny', 'small', 'base'),
    )

    def __init__(self,
                 arch: str | Mapping = 'tiny',
                 in_channels: int = 3,
                 out_indices: int | Sequence[int] = -1,
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.1,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 out_type: str = 'featmap',
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, out_type,
                         **arch_overrides)
        if self.arch['embed_dims'] % 2:
            raise ValueError('embed_dims must be even, one half for the waves of rows and one for those of columns, '
                             f'got {self.arch["embed_dims"]}')
        window_sizes = self.arch['window_sizes']
        if window_sizes is not None and len(window_sizes) != self.arch['depth']:
            raise ValueError(f'window_sizes must be one for each of the {self.arch["depth"]} blocks (depth), '
                             f'got {len(window_sizes)}: {window_sizes}')
        self.build_blocks()

    def holds_cls_token(self) -> bool:
        """Unless there are windows."""
        return self.arch['window_sizes'] is None

    def build_patch_embed(self) -> PatchEmbed:
        """Patches of 16 x 16 pixels, without a norm."""
        return PatchEmbed(self.in_channels, self.arch['embed_dims'], self.patch_size, has_norm=False)

    def build_pos_embed(self) -> GlobalPosition:
        """Generated for a map of any size."""
        return GlobalPosition(self.arch['embed_dims'])

    def build_block(self, index: int, drop_path_rate: float) -> Block:
        """Attention, full or in windows, and FFN."""
        dims, num_heads, mlp_ratio = (self.arch[key] for key in ('embed_dims', 'num_heads', 'mlp_ratio'))
        window_size = self.arch['window_sizes'] and self.arch['window_sizes'][index]
        attn = (WindowAttention(dims, num_heads, window_size) if window_size
                else Attention(dims, num_heads, self.holds_cls_token()))
        return Block(attn, FFN(dims, dims * mlp_ratio), dims, drop_path_rate, EPS)

    def norm_layer(self, index: int) -> partial | None:
        """A layer norm of the last block's map."""
        return partial(nn.LayerNorm, eps=EPS) if index == self.arch['depth'] - 1 else None
