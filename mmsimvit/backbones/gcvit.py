"""GC ViT: Global Context Vision Transformers (Hatamizadeh et al., ICML 2023, arXiv 2206.09959)."""
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import layers
from ..layers import FFN, Block, RelativePositionBias, merge_windows, multi_head_attention, split_into_windows
from ..weights import Published
from .pyramid import PyramidBackbone

# How often the generator of each stage halves its map, for images of the published 224 x 224 pixels. In stage 3 it does not
# if the window is as large as the map: those of published classifiers are, those of published detectors are not.
QUERY_POOLS = (3, 2, 1, 0)
WINDOW_WITHOUT_POOL = 14


class SqueezeExcite(nn.Module):
    """Factors for the channels, from their means over all positions (Squeeze-and-Excitation Networks, 1709.01507)."""

    def __init__(self, dims: int):
        super().__init__()
        self.fc1 = nn.Linear(dims, dims // 4, bias=False)
        self.fc2 = nn.Linear(dims // 4, dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        factors = self.fc2(F.gelu(self.fc1(x.mean((2, 3))))).sigmoid()
        return x * factors[..., None, None]


class FusedMBConv(nn.Module):
    """The residual of depth-wise convolution, squeeze-and-excitation and projection, without norms."""

    def __init__(self, dims: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dims, dims, 3, padding=1, groups=dims, bias=False)
        self.se = SqueezeExcite(dims)
        self.proj = nn.Conv2d(dims, dims, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        return x + self.proj(self.se(F.gelu(self.dwconv(x))))


class Downsample(nn.Module):
    """Half the resolution: norm, fused MBConv, strided convolution, norm."""

    def __init__(self, in_channels: int, embed_dims: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_channels, eps=1e-5)
        self.mbconv = FusedMBConv(in_channels)
        self.reduction = nn.Conv2d(in_channels, embed_dims, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(embed_dims, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / 2), ceil(W / 2), C)``."""
        x = self.norm1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm2(self.reduction(self.mbconv(x)).permute(0, 2, 3, 1))


class Stem(nn.Module):
    """A quarter of the resolution: a strided convolution and a ``Downsample``."""

    def __init__(self, in_channels: int, embed_dims: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dims, 3, stride=2, padding=1)
        self.downsample = Downsample(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / 4), ceil(W / 4), C)``."""
        return self.downsample(self.proj(x))


class GlobalQuery(nn.Module):
    """The global query generator: what enters a stage, drawn together to the size of one window."""

    def __init__(self, dims: int, window_size: int, num_pools: int):
        super().__init__()
        self.window_size = window_size
        self.num_pools = num_pools
        self.mbconvs = nn.ModuleList(FusedMBConv(dims) for _ in range(max(num_pools, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, window_size * window_size, C)``."""
        x = x.permute(0, 3, 1, 2)
        for mbconv in self.mbconvs:
            x = mbconv(x)
            if self.num_pools:
                x = max_pool(x)
        size = (self.window_size, self.window_size)
        if torch.compiler.is_compiling() or x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode='bicubic', align_corners=False)
        return x.flatten(2).transpose(1, 2)


def max_pool(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, C, ceil(H / 2), ceil(W / 2))``, of 3 x 3 pixels."""
    if torch.compiler.is_compiling():  # the operator would have the trace ask whether sizes are even
        return F.pad(x, (1, 1, 1, 1), value=float('-inf')).unfold(2, 3, 2).unfold(3, 3, 2).amax((-2, -1))
    return F.max_pool2d(x, 3, stride=2, padding=1)


class WindowAttention(nn.Module):
    """Self-attention inside windows; with ``is_global``, of the same global queries to each window.

    Maps are padded with zeros at the bottom and right to whole windows. The padding is not masked, as published.
    """

    def __init__(self, dims: int, num_heads: int, window_size: int, is_global: bool):
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        if is_global:
            self.kv = nn.Linear(dims, 2 * dims)
        else:
            self.qkv = nn.Linear(dims, 3 * dims)
        self.position_bias = RelativePositionBias(window_size, num_heads)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, global_query: Tensor | None = None) -> Tensor:
        """``(B, H, W, C)``, and ``(B, window_size * window_size, C)`` if global -> ``(B, H, W, C)``."""
        size, (batch, height, width, _) = self.window_size, x.shape
        x = split_into_windows(x, (size, size))
        if global_query is None:
            query, key, value = self.qkv(x).chunk(3, -1)
        else:
            key, value = self.kv(x).chunk(2, -1)
            windows = key.shape[0] // batch if batch else 0
            query = global_query[:, None].expand(-1, windows, -1, -1).flatten(0, 1)
        bias = self.position_bias(size, size)
        rows, columns = size, size
        if not torch.compiler.is_compiling() and min(height, width) < size:  # of a window that is never full
            rows, columns = min(height, size), min(width, size)
            query, bias = (y.unflatten(1, (size, size))[:, :rows, :columns].flatten(1, 2) for y in (query, bias))
        x = multi_head_attention(query, key, value, self.num_heads, bias)
        return self.proj(merge_windows(x, (rows, columns), batch, height, width))


class Stage(layers.Stage):
    """A stage whose second, fourth ... block takes the global queries of the stage's input."""

    def __init__(self, patch_embed: nn.Module, global_query: GlobalQuery | None, blocks: list[Block], with_cp: bool):
        super().__init__(patch_embed, blocks, with_cp)
        self.global_query = global_query

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, H', W')``, channels last in memory."""
        x = self.patch_embed(x)
        global_query = [] if self.global_query is None else [self.global_query(x)]
        for index, block in enumerate(self.blocks):
            x = self.run_block(block, x, *global_query) if index % 2 else self.run_block(block, x)
        return x.permute(0, 3, 1, 2)


@MODELS.register_module()
class GCViT(PyramidBackbone):
    """GC ViT: blocks with attention inside windows in turn with blocks in which each window is asked the same global queries.

    The outputs are the published detection code's on images of any size.

    Args:
        arch: ``xxtiny``, ``xtiny``, ``tiny``, ``tiny2``, ``small``, ``small2``, ``base`` or ``large``, or a dict of
            ``embed_dims``, ``depths``, ``num_heads``, ``mlp_ratios`` and ``window_sizes``, each with one number for every
            stage, and ``layer_scale``, the initial factor of residual branches, or None for none. The named variants have
            windows of 24, as published detectors; published classifiers have 7, 7, 14, 7, and their tables of relative
            position biases are resampled when they are loaded. In stage 3 queries are pooled unless the window is 14, as for
            224 x 224 pixels; the published classifiers of 384 x 384 and 512 x 512 do not pool there and cannot be expressed.
        in_channels: channels of the input image.
        drop_path_rate: as published for ImageNet 0.2 for ``xxtiny``, ``xtiny`` and ``tiny``, 0.25 for ``tiny2``, 0.3 for
            ``small``, 0.35 for ``small2``, 0.5 for ``base`` and ``large``.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the
    outputs and the errors.
    Each returned map has a norm of its own: name in ``out_indices`` the maps that are used and no others (with
    ``FPN(start_level=1)``, stages 1 to 3), or distributed training stops at parameters without gradient.
    """

    adds_norms = True
    arch_zoo = {
        name: dict(embed_dims=(dims, 2 * dims, 4 * dims, 8 * dims), depths=depths,
                   num_heads=(dims // 32, dims // 16, dims // 8, dims // 4), mlp_ratios=(mlp_ratio, ) * 4,
                   window_sizes=(24, 24, 24, 24), layer_scale=layer_scale)
        for name, dims, depths, mlp_ratio, layer_scale in (
            ('xxtiny', 64, (2, 2, 6, 2), 3, None),
            ('xtiny', 64, (3, 4, 6, 5), 3, None),
            ('tiny', 64, (3, 4, 19, 5), 3, None),
            ('tiny2', 64, (3, 4, 29, 5), 3, None),
            ('small', 96, (3, 4, 19, 5), 2, 1e-5),
            ('small2', 96, (3, 4, 23, 5), 3, 1e-5),
            ('base', 128, (3, 4, 19, 5), 2, 1e-5),
            ('large', 192, (3, 4, 19, 5), 2, 1e-5),
        )
    }
    arch_rules = {
        'layer_scale': ('None or a positive number',
                        lambda value: value is None or (isinstance(value, Real) and float(value) > 0)),
    }
    published = Published(
        url='https://github.com/NVlabs/GCVit',
        licence='NVIDIA Source Code License-NC, weights CC BY-NC-SA 4.0, both non-commercial',
        released=('xxtiny', 'xtiny', 'tiny', 'tiny2', 'small', 'small2', 'base', 'large'),
        rename=(
            (r'^patch_embed\.conv_down\.', 'stages.0.patch_embed.downsample.'),
            (r'^patch_embed\.', 'stages.0.patch_embed.'),
            (r'^levels\.(\d)\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.'),
            (r'^levels\.', 'stages.'),
            (r'^norm([0-3])\.', r'stages.\1.norm.'),
            (r'^norm\.', 'stages.3.norm.'),  # of classifiers: in its place, where published detectors have a new one
            (r'\.q_global_gen\.to_q_global\.(\d)\.conv\.', r'.global_query.mbconvs.\1.'),
            (r'(\.patch_embed(?:\.downsample)?)\.conv\.', r'\1.mbconv.'),
            (r'(\.mbconvs\.\d|\.mbconv)\.0\.', r'\1.dwconv.'),
            (r'(\.mbconvs\.\d|\.mbconv)\.2\.fc\.0\.', r'\1.se.fc1.'),
            (r'(\.mbconvs\.\d|\.mbconv)\.2\.fc\.2\.', r'\1.se.fc2.'),
            (r'(\.mbconvs\.\d|\.mbconv)\.3\.', r'\1.proj.'),
            (r'(\.blocks\.\d*[13579]\.attn)\.qkv\.', r'\1.kv.'),  # every second block has no queries of its own
            (r'\.relative_position_bias_table$', '.position_bias.table'),
            (r'\.gamma([12])$', r'.scale\1.gamma'),
            (r'\.mlp\.', '.ffn.'),
        ),
        drop=r'^head\.|\.relative_position_index$',
        classifiers=('xxtiny', 'xtiny', 'tiny', 'tiny2', 'small', 'small2', 'base', 'large'),
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
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Every second block has global queries, for which a stage of one block has no generator."""
        dims, num_heads, mlp_ratio, window_size = (
            self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios', 'window_sizes'))
        blocks = [Block(WindowAttention(dims, num_heads, window_size, is_global=number % 2 == 1),
                        FFN(dims, dims * mlp_ratio), dims, rate, 1e-5, self.arch['layer_scale'])
                  for number, rate in enumerate(drop_path_rates)]
        num_pools = 0 if index == 2 and window_size == WINDOW_WITHOUT_POOL else QUERY_POOLS[index]
        return Stage((Downsample if index else Stem)(in_channels, dims),
                     GlobalQuery(dims, window_size, num_pools) if len(blocks) > 1 else None, blocks, self.with_cp)

    def norm_layer(self, index: int) -> partial:
        """A layer norm of every map."""
        return partial(nn.LayerNorm, eps=1e-5)
