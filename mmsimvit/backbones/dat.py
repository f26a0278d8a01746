"""DAT: Vision Transformer with Deformable Attention (Xia et al., CVPR 2022, arXiv 2201.00520), and DAT++: Spatially Dynamic
Vision Transformer with Deformable Attention (arXiv 2309.01430)."""
from collections.abc import Mapping, Sequence
from functools import partial
from math import isqrt, prod
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import layers
from ..layers import (
    FFN,
    ConvEmbed,
    ConvFFN,
    RelativePositionBias,
    Stage,
    WindowAttention,
    crop,
    multi_head_attention,
)
from ..ops import neighborhood_attention
from ..ops.finite import split_finite, widen
from ..weights import Published
from .base import is_positive, is_sequence
from .pyramid import PyramidBackbone

EPS = 1e-5
TABLE_STD = 0.01  # of position biases in windows and of deformable attention
CHUNK_BYTES = 1 << 26  # of the position biases of deformable attention that exist at once


class ConvStem(ConvEmbed):
    """The stem of DAT++: a quarter of the resolution by two convolutions, each with a norm."""

    def __init__(self, in_channels: int, embed_dims: int):
        super().__init__(in_channels, embed_dims // 2, 3, 2)
        self.second = ConvEmbed(embed_dims // 2, embed_dims, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / 4), ceil(W / 4), C)``."""
        return self.second(F.gelu(super().forward(x)).permute(0, 3, 1, 2))


class OffsetNetwork(nn.Module):
    """By how much each sampling point is moved, from the queries around it; one network for all groups of channels."""

    def __init__(self, channels: int, groups: int, stride: int, kernel_size: int):
        super().__init__()
        self.groups = groups
        padding = 0 if kernel_size == stride else kernel_size // 2
        self.conv = nn.Conv2d(channels, channels, kernel_size, stride, padding, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.proj = nn.Linear(channels, 2, bias=False)

    def forward(self, query: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B * groups, H', W', 2)``, down and right."""
        conv, bias = self.conv, self.conv.bias
        assert bias is not None  # as it was built
        x = F.conv2d(query.permute(0, 3, 1, 2), conv.weight.repeat(self.groups, 1, 1, 1), bias.repeat(self.groups), conv.stride,
                     conv.padding, groups=query.shape[-1])
        x = fold(x.contiguous(), self.groups).permute(0, 2, 3, 1).contiguous()
        return self.proj(F.gelu(self.norm(x)))


# Of one group, these keep dimensions as they are: reshaping, a trace asks for the lengths behind a dimension of length 1.
def fold(x: Tensor, groups: int) -> Tensor:
    """``(B, groups * C, ...)`` -> ``(B * groups, C, ...)``."""
    return x if groups == 1 else x.unflatten(1, (groups, x.shape[1] // groups)).flatten(0, 1)


def unfold(x: Tensor, groups: int) -> Tensor:
    """``(B * groups, C, ...)`` -> ``(B, groups * C, ...)``."""
    return x if groups == 1 else x.unflatten(0, (x.shape[0] // groups, groups)).flatten(1, 2)


def place(count: int, offset: float, extent: int, like: Tensor) -> Tensor:
    """``(i + offset) / extent`` of ``count`` rows or columns, on a map that goes from -1 to 1, ``(count, )``."""
    index = torch.arange(count, device=like.device)
    return (index + offset).to(like.dtype) * 2 / torch.full_like(index, extent).clamp(min=1) - 1


def sample(maps: Tensor, places: Tensor) -> Tensor:
    """Bilinear samples, with zeros outside of the maps.

    Args:
        maps: ``(N, C, H, W)``.
        places: ``(N, H', W', 2)``, y and x, finite; -1 and 1 are the centres of the first and the last row or column.

    Returns:
        ``(N, C, H', W')``, in the dtype of ``places``.
    """
    return F.grid_sample(maps.to(places.dtype), places.flip(-1), align_corners=True)


class SampledPositionBias(RelativePositionBias):
    """A relative position bias of displacements that are no whole numbers of pixels.

    The table goes from the largest displacement on a map to its negative, however many pixels the map has.
    """

    def at(self, displacements: Tensor, groups: int) -> Tensor:
        """The bias ``(B, num_heads, queries, keys)`` from displacements of query minus key, ``(B * groups, queries, keys, 2)``,
        down and right; each group is for the heads in its turn, and 2 is the height and width of the map."""
        size, heads = isqrt(self.table.shape[0]), self.table.shape[1]
        maps = self.table.t().view(1, heads, size, size).expand(displacements.shape[0] // groups, -1, -1, -1)
        return unfold(sample(fold(maps, groups), displacements / 2), groups)


class DeformableAttention(nn.Module):
    """Self-attention whose keys and values are sampled at places that the queries choose, in groups of channels (the second
    paper's section 3.2).

    Places and position biases are coordinates in which -1 and 1 are the centres of the first and the last pixel. The
    published rules put ``i + 1/2`` over the number of rows, or (``from_borders``) one less than it, so that places are off the
    centre, and reach beyond the map: it is what the weights have learnt.

    The bias has a number for each head and each pair of a query and a key. Where that is much, queries are taken a few rows at
    a time, and in training computed again, so that neither the biases nor the weights of a whole map exist at once.
    """

    def __init__(self, dims: int, num_heads: int, groups: int, stride: int, kernel_size: int, offset_range: int | None,
                 from_borders: bool, bias_grid: int):
        super().__init__()
        self.num_heads = num_heads
        self.groups = groups
        self.offset_range = offset_range
        self.from_borders = from_borders
        self.query = nn.Linear(dims, dims)
        self.offset = OffsetNetwork(dims // groups, groups, stride, kernel_size)
        self.key = nn.Linear(dims, dims)
        self.value = nn.Linear(dims, dims)
        self.position_bias = SampledPositionBias(bias_grid, num_heads, TABLE_STD)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        height, width = x.shape[1:3]
        query = self.query(x)
        places, marks = split_finite(self.choose_places(query))
        sampled = sample(fold(x.permute(0, 3, 1, 2).contiguous(), self.groups), places) + marks.sum(-1)[:, None]
        sampled = unfold(sampled, self.groups).flatten(2).transpose(1, 2).to(x.dtype)
        key, value, places = self.key(sampled), self.value(sampled), places.flatten(1, 2)
        offset, less = (0., 1) if self.from_borders else (.5, 0)
        y, x = (place(length, offset, length - less, places) for length in (height, width))
        # Added to zeros, for a trace asks much of dimensions that are expanded.
        grid = torch.stack([y[:, None] + torch.zeros_like(x), torch.zeros_like(y)[:, None] + x], -1)
        return self.proj(self.attend(query, key, value, grid, places))

    def choose_places(self, query: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> where each group of channels samples its map, ``(B * groups, H', W', 2)``, y and x."""
        offset = widen(self.offset(query))
        counts = offset.shape[1:3]
        extents = [count - 1 for count in counts] if self.from_borders else counts
        offsets: Sequence[Tensor] = offset.unbind(-1)
        if self.offset_range is not None:
            offsets = [part.tanh() * self.offset_range / torch.full_like(part, extent).clamp(min=1)
                       for part, extent in zip(offsets, extents)]
        y, x = (place(count, .5, extent, offset) for count, extent in zip(counts, extents))
        places = torch.stack([y[:, None] + offsets[0], x + offsets[1]], -1)
        return places.clamp(-1, 1) if self.offset_range is None else places

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Tensor, places: Tensor) -> Tensor:
        """Attention with position biases.

        Args:
            query: ``(B, H, W, C)``.
            key, value: ``(B, M, C)``.
            grid: coordinates of the queries, y and x, ``(H, W, 2)``.
            places: those of the keys, ``(B * groups, M, 2)``.

        Returns:
            ``(B, H, W, C)``.
        """
        row_bytes = self.num_heads * prod(query.shape[::2]) * key.shape[1] * query.element_size()
        if torch.compiler.is_compiling() or row_bytes * query.shape[1] <= CHUNK_BYTES:
            return self.attend_rows(query, key, value, grid, places)
        step, outs = max(CHUNK_BYTES // row_bytes, 1), []
        for part, part_grid in zip(query.split(step, 1), grid.split(step)):
            inputs = (part, key, value, part_grid, places)
            outs.append(checkpoint(self.attend_rows, *inputs, use_reentrant=False, preserve_rng_state=False)
                        if torch.is_grad_enabled() else self.attend_rows(*inputs))
        return torch.cat(outs, 1)

    def attend_rows(self, query: Tensor, key: Tensor, value: Tensor, grid: Tensor, places: Tensor) -> Tensor:
        """The same of some rows at once: query ``(B, rows, W, C)``, grid ``(rows, W, 2)`` -> ``(B, rows, W, C)``."""
        bias = self.position_bias.at(grid.flatten(0, 1)[:, None] - places[:, None], self.groups)
        return multi_head_attention(query.flatten(1, 2), key, value, self.num_heads, bias).unflatten(1, query.shape[1:3])


class NeighborhoodAttention(nn.Module):
    """Attention of each pixel to the pixels around it, in a window that is moved into the map at its borders (NAT,
    2204.07143). The table of position biases counts from query to key, where that of windows counts from key to query.

    Maps smaller than the window are padded with zeros at the bottom and right. The padding is not masked, as published.
    """

    def __init__(self, dims: int, num_heads: int, window_size: int):
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(dims, 3 * dims)
        self.position_bias = RelativePositionBias(window_size, num_heads)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        shape, size = x.shape[1:3], self.window_size
        x = x.permute(0, 3, 1, 2)
        if torch.compiler.is_compiling():
            x = crop(F.pad(x, (0, size - 1, 0, size - 1)), *(torch.sym_max(length, size) for length in shape))
        elif min(shape) < size:
            x = F.pad(x, (0, max(size - shape[1], 0), 0, max(size - shape[0], 0)))
        query, key_and_value = self.qkv(x.permute(0, 2, 3, 1)).split((x.shape[1], 2 * x.shape[1]), -1)
        bias = self.position_bias.table.t().unflatten(1, (2 * size - 1, 2 * size - 1))
        x = self.proj(neighborhood_attention(query, key_and_value, None, self.num_heads, size, bias))
        return crop(x.permute(0, 3, 1, 2), *shape).permute(0, 2, 3, 1)


class ConvBlock(layers.Block):
    """A block of DAT++, which begins with a depth-wise convolution that is added to its input."""

    def __init__(self, attn: nn.Module, ffn: nn.Module, dims: int, drop_path: float, eps: float):
        super().__init__(attn, ffn, dims, drop_path, eps)
        self.dwconv = nn.Conv2d(dims, dims, 3, padding=1, groups=dims)

    def forward(self, x: Tensor, *context: Tensor | int) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        return super().forward(x + self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), *context)


def shape_weights(converted: dict[str, Tensor]) -> None:
    """Give what has another shape in published checkpoints its own: layers of single pixels, which are convolutions there, and
    tables of position biases, which have the heads first."""
    for name, tensor in converted.items():
        if tensor.dim() == 4 and tensor.shape[2:] == (1, 1) and '.dwconv.' not in name:
            converted[name] = tensor.flatten(1)
        elif tensor.dim() == 3 and name.endswith('.position_bias.table'):
            converted[name] = tensor.flatten(1).t()


@MODELS.register_module()
class DAT(PyramidBackbone):
    """DAT and DAT++: deformable attention, in turn with attention inside windows (DAT) or in neighborhoods (DAT++).

    The outputs are those of the published code: of the classifier of DAT (``tiny``, ``small``, ``base``), which takes 224 x 224
    pixels alone, and of the detection code of DAT++, with the settings of DAT (``tiny_det``, ``small_det``, ``base_det``) and
    with its own, on images of any size with two rows and columns in the last map. The two place queries and keys in different
    ways. On images of other sizes the former compute by their own rules, with windows and tables as the latter have them.
    Maps of DAT are rounded down, those of DAT++ up. Images and maps that are too small for a convolution without padding get
    zeros at the bottom and right.

    Args:
        arch: ``tiny``, ``small``, ``base``, ``tiny_det``, ``small_det``, ``base_det``, ``plus_tiny``, ``plus_small``,
            ``plus_base``, or a dict of ``embed_dims``, ``depths``, ``num_heads``, ``groups`` (which sample at places of their
            own; divisors of ``num_heads``) and ``mlp_ratios``, each with one number for every stage; ``blocks``, for each stage
            the kinds of its blocks, in turn: L for windows, S for shifted windows, N for neighborhoods, D for deformable
            attention; ``window_size``, rows and columns of a window, or of a neighborhood (then odd); ``offset_strides`` and
            ``offset_kernels``, for each stage those of the convolution that predicts offsets; ``offset_range``, the largest
            offset in pixels of the sampled map, times two, or None for places that are kept in the map instead;
            ``from_borders``, whether places are those of the detection code; ``bias_grids``, for each stage the rows and
            columns that tables of deformable attention are for; ``plus``, whether embeddings overlap, and blocks have
            depth-wise convolutions; and ``map_norms``, the stages, from 0, whose maps are normalised. The published
            classifiers of 384 x 384 pixels have ``bias_grids`` (96, 48, 24, 12), that of DAT a ``window_size`` of 12.
        in_channels: channels of the input image.
        drop_path_rate: as published for ImageNet 0.2, 0.3, 0.5 (DAT) and 0.2, 0.4, 0.7 (DAT++).

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the errors and,
    but for the sizes of DAT's maps, the outputs. Tables of other sizes are resampled when they are loaded.

    Raises:
        ValueError: also for ``num_heads`` that are no multiples of ``groups``, and for neighborhoods of even size.
    """

    adds_norms = True
    arch_zoo = {
        **{
            f'{name}{suffix}': dict(
                embed_dims=(dims, 2 * dims, 4 * dims, 8 * dims), depths=(2, 2, depth, 2),
                num_heads=(dims // 32, dims // 16, dims // 8, dims // 4), groups=(1, 1, dims // 32, dims // 16),
                mlp_ratios=(4, 4, 4, 4), blocks=('LS', 'LS', 'LD', 'LD'), window_size=7, offset_strides=(1, 1, 1, 1),
                offset_kernels=(5, 5, 5, 3), offset_range=2, from_borders=suffix == '_det', bias_grids=(56, 28, 14, 7),
                plus=False, map_norms=map_norms)
            for suffix, map_norms in (('', (3, )), ('_det', (0, 1, 2, 3)))
            for name, dims, depth in (('tiny', 96, 6), ('small', 96, 18), ('base', 128, 18))
        },
        **{
            f'plus_{name}': dict(
                embed_dims=(dims, 2 * dims, 4 * dims, 8 * dims), depths=(2, 4, 18, 2),
                num_heads=(dims // 32, dims // 16, dims // 8, dims // 4), groups=groups, mlp_ratios=(4, 4, 4, 4),
                blocks=('ND', 'ND', 'ND', 'DD'), window_size=7, offset_strides=(8, 4, 2, 1), offset_kernels=(9, 7, 5, 3),
                offset_range=None, from_borders=True, bias_grids=(56, 28, 14, 7), plus=True, map_norms=(0, 1, 2, 3))
            for name, dims, groups in (('tiny', 64, (1, 2, 4, 8)), ('small', 96, (1, 2, 3, 6)), ('base', 128, (2, 4, 8, 16)))
        },
    }
    arch_rules = {
        'blocks': ('4 texts of the letters D, L, N and S, one for each stage',
                   lambda value: is_sequence(value) and len(value) == 4 and all(
                       isinstance(kinds, str) and kinds and set(kinds) <= set('DLNS') for kinds in value)),
        'window_size': ('a positive whole number', is_positive),
        'offset_range': ('None or a positive whole number', lambda value: value is None or is_positive(value)),
        'from_borders': ('True or False', lambda value: isinstance(value, bool)),
        'plus': ('True or False', lambda value: isinstance(value, bool)),
        'map_norms': ('stages among 0, 1, 2, 3', lambda value: is_sequence(value) and all(i in range(4) for i in value)),
    }
    published = Published(
        url='https://github.com/LeapLabTHU/DAT',
        licence='Apache-2.0; detection and segmentation code of DAT++ without a licence',
        released=('tiny', 'small', 'base', 'plus_tiny', 'plus_small', 'plus_base'),
        rename=(
            (r'\.norm\.(weight|bias)$', r'.\1'),
            (r'^patch_proj\.0\.', 'stages.0.patch_embed.proj.'),
            (r'^patch_proj\.1\.', 'stages.0.patch_embed.norm.'),
            (r'^patch_proj\.3\.', 'stages.0.patch_embed.second.proj.'),
            (r'^patch_proj\.4\.', 'stages.0.patch_embed.second.norm.'),
            (r'^down_projs\.(\d)\.0\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.proj.'),
            (r'^down_projs\.(\d)\.1\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.norm.'),
            (r'^norms\.(\d)\.', r'stages.\1.norm.'),
            (r'^cls_norm\.', 'stages.3.norm.'),  # of classifiers: in its place, where published detectors have a new one
            (r'\.layer_norms\.(\d+)\.', lambda m: f'.blocks.{int(m[1]) // 2}.norm{int(m[1]) % 2 + 1}.'),
            (r'\.local_perception_units\.(\d+)\.', r'.blocks.\1.dwconv.'),
            (r'\.mlps\.(\d+)\.', r'.blocks.\1.ffn.'),
            (r'\.chunk\.linear([12])\.', r'.fc\1.'),
            (r'\.linear([12])\.0\.', r'.fc\1.'),
            (r'\.dwc\.', '.dwconv.'),
            (r'\.attns\.(\d+)\.', r'.blocks.\1.attn.'),
            (r'\.proj_qkv\.', '.qkv.'),
            (r'\.proj_out\.', '.proj.'),
            (r'\.proj_q\.', '.query.'),
            (r'\.proj_k\.', '.key.'),
            (r'\.proj_v\.', '.value.'),
            (r'\.conv_offset\.0\.', '.offset.conv.'),
            (r'\.conv_offset\.1\.', '.offset.norm.'),
            (r'\.conv_offset\.3\.', '.offset.proj.'),
            (r'\.(relative_position_bias_table|rpe_table|rpb)$', '.position_bias.table'),
        ),
        drop=r'^cls_head\.|\.relative_position_index$|\.attn_mask$',
        finish=shape_weights,
        classifiers=('tiny', 'small', 'base', 'plus_tiny', 'plus_small', 'plus_base'),
        head=(('cls_head', 'head.fc'), ),
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
        if not self.arch['plus']:
            self.min_traced_size = 64  # as all its maps are rounded down
        for heads, groups in zip(self.arch['num_heads'], self.arch['groups']):
            if heads % groups:
                raise ValueError(f'each of num_heads must be a multiple of its groups, got {heads} and {groups}')
        if any('N' in kinds for kinds in self.arch['blocks']) and self.arch['window_size'] % 2 == 0:
            raise ValueError(f'neighborhoods (N in blocks) must have an odd window_size, got {self.arch["window_size"]}')
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Blocks of the kinds in ``blocks``, in turn."""
        dims, mlp_ratio, kinds = (self.arch[key][index] for key in ('embed_dims', 'mlp_ratios', 'blocks'))
        plus = self.arch['plus']
        patch_embed: nn.Module
        if index:
            size = 3 if plus else 2
            patch_embed = ConvEmbed(in_channels, dims, size, 2, size // 3, bias=False)
        else:
            patch_embed = ConvStem(in_channels, dims) if plus else ConvEmbed(in_channels, dims, 4, 4, 0)
        make_block, make_ffn = ((ConvBlock, partial(ConvFFN, adds_hidden=True)) if plus
                                else (layers.Block, partial(FFN, recompute=True)))
        blocks = [make_block(self.build_attention(kinds[number % len(kinds)], index), make_ffn(dims, dims * mlp_ratio), dims,
                             rate, EPS) for number, rate in enumerate(drop_path_rates)]
        return Stage(patch_embed, blocks, self.with_cp)

    def build_attention(self, kind: str, index: int) -> nn.Module:
        """The attention of a kind of block, in a stage."""
        dims, num_heads, groups, stride, kernel_size, bias_grid = (
            self.arch[key][index] for key in ('embed_dims', 'num_heads', 'groups', 'offset_strides', 'offset_kernels',
                                              'bias_grids'))
        if kind == 'D':
            return DeformableAttention(dims, num_heads, groups, stride, kernel_size, self.arch['offset_range'],
                                       self.arch['from_borders'], bias_grid)
        if kind == 'N':
            return NeighborhoodAttention(dims, num_heads, self.arch['window_size'])
        size = self.arch['window_size']
        # Half a window, rounded up, where Swin rounds down.
        return WindowAttention(dims, num_heads, size, (size + 1) // 2 if kind == 'S' else 0, TABLE_STD)

    def norm_layer(self, index: int) -> partial | None:
        """A layer norm of the maps that ``map_norms`` names."""
        return partial(nn.LayerNorm, eps=EPS) if index in self.arch['map_norms'] else None

    def init_random_weights(self) -> None:
        """Draw the published random initialisation: all as torch and the layers themselves have it."""
        for module in self.modules():
            reset = getattr(module, 'reset_parameters', None)
            if callable(reset):
                reset()
