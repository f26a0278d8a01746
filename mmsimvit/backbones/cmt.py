"""CMT: Convolutional Neural Networks Meet Vision Transformers (Guo et al., CVPR 2022, arXiv 2107.06263)."""
import re
from collections.abc import Mapping, Sequence
from functools import partial
from math import isqrt
from numbers import Real
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.model import kaiming_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import layers
from ..layers import PatchEmbed, crop, divide, fit_loaded, multi_head_attention, pad_to_multiple, run_block
from ..ops.backends import is_exporting
from ..weights import Published
from .base import is_numbers, is_positive, is_sequence
from .pyramid import PyramidBackbone

REDUCTIONS = (8, 4, 2, 1)  # in each stage, of the map's height and width to those of the keys and values
MULTIPLE = 32  # pixels of the image for one key, in height and in width, in every stage
EPS = 1e-6  # of the norms in blocks and of returned maps; those of patch embeddings have 1e-5


class LocalConv(nn.Conv2d):
    """A depth-wise convolution added to what it takes: the local perception unit (LPU), and the inner skip of the FFN."""

    def __init__(self, dims: int):
        super().__init__(dims, dims, 3, padding=1, groups=dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        return x + super().forward(x)


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """A batch norm of ``(B, C, H, W)``, channels last in memory, but to export: there a trace asks how their strides divide."""
    return norm(x.contiguous() if is_exporting() else x)


class Activated(nn.Module):
    """GELU, batch norm (in this order) and a convolution. A training keeps its input alone.

    Args:
        conv: takes the normalised map.
        recompute: compute GELU and norm again in the backward pass.
    """

    def __init__(self, conv: nn.Conv2d, recompute: bool):
        super().__init__()
        self.norm = nn.BatchNorm2d(conv.in_channels)
        self.conv = conv
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C', H', W')``."""
        return self.conv(normalise(self.norm, F.gelu(x)))


def run(part: nn.Module, x: Tensor) -> Tensor:
    """An ``Activated`` of ``(B, C, H, W)``, recomputed in the backward pass if it is to be and no trace is made."""
    return run_block(part, bool(part.recompute) and not torch.compiler.is_compiling(), x)


class StemEmbed(nn.Module):
    """Three convolutions, of which the first halves the resolution, and a projection of 2 x 2 patches."""

    def __init__(self, in_channels: int, stem_dims: int, embed_dims: int, recompute: bool):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, stem_dims, 3, stride=2, padding=1)
        convs = (nn.Conv2d(stem_dims, stem_dims, 3, padding=1), nn.Conv2d(stem_dims, stem_dims, 3, padding=1),
                 nn.Conv2d(stem_dims, embed_dims, 2, stride=2))
        self.layers = nn.ModuleList(Activated(conv, recompute) for conv in convs)
        self.norm = nn.LayerNorm(embed_dims, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)``, multiples of 4 -> ``(B, H / 4, W / 4, C)``."""
        x = self.conv(x.contiguous(memory_format=torch.channels_last))  # as all that follows
        for layer in self.layers:
            x = run(layer, x)
        return self.norm(x.permute(0, 2, 3, 1))


def resample_table(table: Tensor, queries: int, keys: int) -> Tensor:
    """``(heads, N, M)`` -> ``(heads, queries, keys)``, each head's an image, bicubic (a = -0.75, without antialiasing)."""
    if isinstance(queries, int) and table.shape[1:] == (queries, keys):  # not a symbol, which would be fixed by comparing it
        return table
    return F.interpolate(table[None], size=(queries, keys), mode='bicubic', align_corners=False)[0]


def resample_grids(table: Tensor, size: Sequence[int], new_size: Sequence[int], reduction: int) -> Tensor:
    """Resample the map of keys of each query, then the map of queries of each new key, both bicubic.

    Args:
        table: ``(heads, N, M)``.
        size, new_size: height and width of the map of queries, now and then.
        reduction: of these to the height and width of the map of keys.

    Returns:
        ``(heads, N', M')``.
    """
    for grid, new_grid in (([length // reduction for length in size], [length // reduction for length in new_size]),
                           (size, new_size)):
        images = table.unflatten(2, tuple(grid))
        images = F.interpolate(images, size=tuple(new_grid), mode='bicubic', align_corners=False)
        row, column = divide(torch.arange(new_grid[0] * new_grid[1], device=table.device), new_grid[1])
        table = images[:, :, row, column].transpose(1, 2)  # a trace that flattens them compares their lengths
    return table.contiguous()


def align_rows(bias: Tensor) -> Tensor:
    """``(..., M)`` with rows that begin at multiples of eight numbers in memory. CUDA's attention copies a bias whose rows do
    not, once for each block, and keeps the copies for the backward pass."""
    keys = bias.shape[-1]
    return F.pad(bias, (0, -keys % 8))[..., :keys] if keys % 8 else bias


class PositionBias(nn.Module):
    """A learned bias of attention for each head and each pair of a query and a key of one map; rows of the table are queries,
    columns keys, both row-major.

    The table is resampled for maps of other sizes, in each forward pass. Evaluation without gradients keeps the result for the
    next map of the same size. A checkpoint's table of another size is resampled when it is loaded.

    Args:
        num_heads: attention heads.
        size: height and width of the map that the table is for.
        reduction: of these to the height and width of the map of keys.
        resampling: ``table`` or ``grid``; see ``CMT``.
    """

    def __init__(self, num_heads: int, size: Sequence[int], reduction: int, resampling: str):
        super().__init__()
        self.size = tuple(size)
        self.reduction = reduction
        self.resampling = resampling
        queries = size[0] * size[1]
        self.table = nn.Parameter(torch.empty(num_heads, queries, queries // reduction**2))
        self.kept: tuple[tuple, Tensor] | None = None
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(fit_loaded)

    def reset_parameters(self) -> None:
        """Draw the table from a normal distribution with a deviation of 1, as published."""
        nn.init.normal_(self.table)

    def forward(self, height: int, width: int) -> Tensor:
        """The bias ``(num_heads, height * width, height * width / reduction ** 2)``, under autocast in its precision."""
        table, dtype = self.table, self.table.dtype
        kind = table.device.type
        if kind != 'meta' and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or table.is_inference():
            return self.make(table, height, width, dtype)
        state = height, width, dtype, table.dtype, table.device, table.data_ptr(), table._version  # all that changes the result
        if self.kept is None or self.kept[0] != state:
            self.kept = None  # first, so that there are never two; at 800 x 1333 pixels all stages have 0.5 GB of them
            self.kept = state, self.make(table.detach(), height, width, dtype)
        return self.kept[1]

    def make(self, table: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """The bias ``(num_heads, height * width, height * width / reduction ** 2)`` in the form that attention takes: cast and
        aligned here, there is one in memory for all blocks."""
        bias = self.resample(table, self.size, (height, width)).to(dtype)
        return align_rows(bias) if bias.is_cuda and not torch.compiler.is_compiling() else bias

    def train(self, mode: bool = True) -> 'PositionBias':
        """As in torch. The bias that was kept is forgotten: mmengine's averaged weights take the table's place unseen."""
        self.kept = None
        return super().train(mode)

    def resample(self, table: Tensor, size: Sequence[int], new_size: Sequence[int]) -> Tensor:
        """A table for maps of one size -> one for maps of another, ``(num_heads, N, M)`` both."""
        (height, width), area = new_size, self.reduction**2
        if self.resampling == 'table':
            return resample_table(table, height * width, height * width // area)
        if isinstance(height, int) and tuple(size) == (height, width):
            return table
        return resample_grids(table, size, new_size, self.reduction)

    def fit_state_dict(self, state_dict: dict, prefix: str) -> None:
        """Resample, in place of the entry, a table that was learned for another size; ``grid`` takes it for a square's."""
        name = f'{prefix}table'
        table = state_dict.get(name)
        if (not isinstance(table, Tensor) or not table.is_floating_point() or table.dim() != 3
                or table.shape[0] != len(self.table) or table.shape == self.table.shape or not table.numel()):
            return
        side = isqrt(table.shape[1])
        is_square = side % self.reduction == 0 and table.shape[1:] == (side**2, (side // self.reduction)**2)
        if self.resampling == 'table' or is_square:
            state_dict[name] = self.resample(table, (side, side), self.size)


class Attention(nn.Module):
    """Lightweight multi-head self-attention (LMHSA): of each pixel to the pixels of a reduced map, with a bias of positions."""

    def __init__(self, dims: int, num_heads: int, reduction: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dims, dims)
        self.reduction = None
        if reduction > 1:
            self.reduction = nn.Conv2d(dims, dims, reduction, reduction, groups=dims)
            self.norm = nn.BatchNorm2d(dims)
        self.k = nn.Linear(dims, dims)
        self.v = nn.Linear(dims, dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``(B, H, W, C)``, and ``(num_heads, N, M)`` for N pixels and M of the reduced map -> ``(B, H, W, C)``."""
        query, tokens = self.q(x).flatten(1, 2), x
        if self.reduction is not None:
            tokens = normalise(self.norm, self.reduction(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        tokens = tokens.flatten(1, 2)
        out = multi_head_attention(query, self.k(tokens), self.v(tokens), self.num_heads, bias)
        return self.proj(out.view_as(x))


class FFN(nn.Module):
    """Inverted residual feed-forward network (IRFFN): 1 x 1 convolutions with a depth-wise one between them."""

    def __init__(self, dims: int, hidden_dims: int, recompute: bool):
        super().__init__()
        # Before the convolutions: MMCV's fuse_conv_bn takes a batch norm for that of the convolution registered before it.
        self.norm = nn.BatchNorm2d(dims)
        self.fc1 = nn.Conv2d(dims, hidden_dims, 1)
        self.local = Activated(LocalConv(hidden_dims), recompute)
        self.fc2 = Activated(nn.Conv2d(hidden_dims, dims, 1), recompute)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        x = run(self.local, self.fc1(x.permute(0, 3, 1, 2)))
        return normalise(self.norm, run(self.fc2, x)).permute(0, 2, 3, 1)


class Block(layers.Block):
    """A block that begins with the local perception unit."""

    def __init__(self, attn: Attention, ffn: FFN, dims: int, drop_path: float):
        super().__init__(attn, ffn, dims, drop_path, EPS)
        self.lpu = LocalConv(dims)

    def forward(self, x: Tensor, *context: Tensor | int) -> Tensor:
        """``(B, H, W, C)``, and the bias of attention -> ``(B, H, W, C)``."""
        return super().forward(self.lpu(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), *context)


class Stage(layers.Stage):
    """A stage whose blocks share one bias of positions. If it recomputes, then its patch embedding too, for the stem's maps are
    larger than those of the blocks.

    Args:
        patch_embed, blocks, with_cp: as there.
        position_bias: gives it for the size of a map.
    """

    def __init__(self, patch_embed: nn.Module, blocks: Sequence[Block], with_cp: bool, position_bias: PositionBias):
        super().__init__(patch_embed, blocks, with_cp)
        self.position_bias = position_bias

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, H', W')``, channels last in memory."""
        x = self.run_block(self.patch_embed, x)
        bias = self.position_bias(*x.shape[1:3])
        for block in self.blocks:
            x = self.run_block(block, x, bias)
        return x.permute(0, 3, 1, 2)


def place_stem(match: re.Match) -> str:
    """For ``Published.rename``: where a norm or convolution of the stem is, which count from 1."""
    kind, number = match[1], int(match[2])
    if kind == 'norm':
        return f'stages.0.patch_embed.layers.{number - 1}.norm.'
    return f'stages.0.patch_embed.layers.{number - 2}.conv.' if number > 1 else 'stages.0.patch_embed.conv.'


def place_stage(match: re.Match) -> str:
    """For ``Published.rename``: a stage from 0 of one by letter."""
    part = {'patch_embed': 'patch_embed.', 'relative_pos': 'position_bias.table', 'blocks': 'blocks.'}[match[1]]
    return f'stages.{"abcd".index(match[2])}.{part}'


@MODELS.register_module()
class CMT(PyramidBackbone):
    """CMT: blocks of a depth-wise convolution, attention to a reduced map, and a convolutional feed-forward network.

    Attention has a learned bias for each pair of a query and a key, one table for each stage, which belongs to one size of
    images. On images of that size the outputs are the published classification code's, which takes no others. Here images of
    any size are padded with zeros at the bottom and right to multiples of 32, where the published code leaves pixels out, and
    the tables are resampled as the paper says, each a two-dimensional image of queries by keys.

    Code for dense prediction was not published. The maps are those that the published stages hand on, without norms. For dense
    prediction, set ``map_norms``, as the configs do.

    Args:
        arch: ``ti``, ``xs``, ``s`` or ``b``, or a dict of ``embed_dims``, ``depths``, ``num_heads`` and ``mlp_ratios``, each
            with one number for every stage, of which ``mlp_ratios`` need not be whole; ``stem_dims``, the channels of the
            stem; ``image_size``, height and width in pixels that the position tables are for; ``resampling``, ``table`` as in
            the paper, or ``grid``, which keeps places: it resamples the map of keys of each query, and then the map of
            queries; and ``map_norms``, the stages, from 0, whose maps are normalised.
        in_channels: channels of the input image.
        drop_path_rate: as published 0.1 for ``ti`` and ``s``, 0.08 for ``xs``, 0.25 for ``b``.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the outputs and
    the errors.
    """

    adds_norms = True
    arch_zoo = {
        name: dict(embed_dims=(dims, 2 * dims, 4 * dims, 8 * dims), depths=depths, num_heads=(1, 2, 4, 8),
                   mlp_ratios=(mlp_ratio, ) * 4, stem_dims=stem_dims, image_size=(size, size), resampling='table',
                   map_norms=())
        for name, size, stem_dims, dims, depths, mlp_ratio in (
            ('ti', 160, 16, 46, (2, 2, 10, 2), 3.6),
            ('xs', 192, 16, 52, (3, 3, 12, 3), 3.77),
            ('s', 224, 32, 64, (3, 3, 16, 3), 4),
            ('b', 256, 38, 76, (4, 4, 20, 4), 4),
        )
    }
    arch_rules = {
        'mlp_ratios': ('4 numbers of at least 1, one for each stage',
                       lambda value: is_sequence(value) and len(value) == 4
                       and all(isinstance(ratio, Real) and float(ratio) >= 1 for ratio in value)),
        'stem_dims': ('a positive whole number', is_positive),
        'image_size': (f'height and width in pixels, multiples of {MULTIPLE}',
                       lambda value: is_numbers(value, 2) and not any(length % MULTIPLE for length in cast(Sequence, value))),
        'resampling': ("'table' or 'grid'", lambda value: value in ('table', 'grid')),
        'map_norms': ('stages among 0, 1, 2, 3', lambda value: is_sequence(value) and all(i in range(4) for i in value)),
    }
    published = Published(
        url='https://github.com/ggjy/CMT.pytorch',
        licence='MIT by the badge of its README; there is no licence file',
        released=('ti', 'xs', 's', 'b'),
        rename=(
            (r'^stem_(conv|norm)([123])\.', place_stem),
            (r'^(patch_embed|relative_pos|blocks)_([abcd])\.?', place_stage),
            (r'^stages\.0\.patch_embed\.proj\.', 'stages.0.patch_embed.layers.2.conv.'),
            (r'\.attn\.sr\.0\.', '.attn.reduction.'),
            (r'\.attn\.sr\.1\.', '.attn.norm.'),
            (r'\.(\d+)\.proj\.', r'.\1.lpu.'),
            (r'\.mlp\.conv1\.0\.', '.ffn.fc1.'),
            (r'\.mlp\.conv1\.2\.', '.ffn.local.norm.'),
            (r'\.mlp\.proj\.', '.ffn.local.conv.'),
            (r'\.mlp\.proj_bn\.', '.ffn.fc2.norm.'),
            (r'\.mlp\.conv2\.0\.', '.ffn.fc2.conv.'),
            (r'\.mlp\.conv2\.1\.', '.ffn.norm.'),
        ),
        drop=r'^(_fc|_bn|head)\.',
    )

    def __init__(self,
                 arch: str | Mapping = 's',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.1,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """The stem is part of the first stage's patch embedding."""
        dims, num_heads, mlp_ratio = (self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios'))
        recompute, reduction = not self.with_cp, REDUCTIONS[index]
        patch_embed = (PatchEmbed(in_channels, dims, 2) if index
                       else StemEmbed(in_channels, self.arch['stem_dims'], dims, recompute))
        blocks = [Block(Attention(dims, num_heads, reduction), FFN(dims, int(mlp_ratio * dims), recompute), dims, rate)
                  for rate in drop_path_rates]
        size = [length // self.stage_strides[index] for length in self.arch['image_size']]
        return Stage(patch_embed, blocks, self.with_cp, PositionBias(num_heads, size, reduction, self.arch['resampling']))

    def norm_layer(self, index: int) -> partial | None:
        """A layer norm of the maps that ``map_norms`` names."""
        return partial(nn.LayerNorm, eps=EPS) if index in self.arch['map_norms'] else None

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, C, H, W)`` -> the contiguous maps of the stages in ``out_indices``, without the padding of the image."""
        sizes = [[(length + stride - 1) // stride for length in x.shape[2:]] for stride in self.strides]
        outs = super().forward_features(pad_to_multiple(x, MULTIPLE))
        return tuple(crop(out, *size).contiguous() for out, size in zip(outs, sizes))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters of norms and of position tables, for fine-tuning with layer-wise learning rate decay."""
        return super().no_weight_decay() | {f'stages.{index}.position_bias.table' for index in range(self.num_built)}

    def init_random_weights(self) -> None:
        """Draw the published random initialisation: that of Swin for linear layers; convolutions by He's rule, from a normal
        distribution with ``sqrt(2 / (kernel height * kernel width * output channels))``, which does not count groups, and with
        biases of zero."""
        super().init_random_weights()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                kaiming_init(module, mode='fan_out')
