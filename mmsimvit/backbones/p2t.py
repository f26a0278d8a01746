"""P2T: Pyramid Pooling Transformer for Scene Understanding (Wu et al., TPAMI 2023, arXiv 2106.12011)."""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import layers
from ..layers import Block, ConvEmbed, InvertedResidual, multi_head_attention
from ..weights import Published, stage_before
from .pyramid import PyramidBackbone

POOL_RATIOS = ((12, 16, 20, 24), (6, 8, 10, 12), (3, 4, 5, 6), (1, 2, 3, 4))  # of each stage, in pixels of its map
EPS = 1e-6  # of the norms of blocks; those of patch embeddings and of pooled maps have 1e-5


def count_cells(length: int, ratios: Sequence[int], device: torch.device) -> Tensor:
    """``max(1, round(length / ratio))`` for each ratio, halves to even as published: ``(levels,)``."""
    ratio = torch.tensor(ratios, device=device)
    return (torch.full_like(ratio, length) / ratio).round().long().clamp(min=1)


def average_cells(length: int, ratios: Sequence[int], like: Tensor) -> Tensor:
    """The pixels' weights in the means over cells, which overlap by a pixel where their number does not divide ``length``.

    Args:
        length: of a row or a column of pixels.
        ratios: of the length to the number of cells, for each level of the pyramid.
        like: what has the dtype and the device of the result.

    Returns:
        ``(levels * n, length)``, level by level, where n is more than the most cells of any. Those that a level lacks are
        zero: its convolution takes them for padding, and a trace need not ask whether there is one cell or several.
    """
    count = count_cells(length, ratios, like.device)[:, None, None]
    cell = torch.arange(length // min(ratios) + 2, device=like.device)[:, None]
    first, end = cell * length // count, ((cell + 1) * length + count - 1) // count
    pixel = torch.arange(length, device=like.device)
    inside = (first <= pixel) & (pixel < end) & (cell < count)
    return torch.cat((inside.to(like.dtype) / (end - first)).unbind())  # a trace would ask how to flatten it


def list_cells(height: int, width: int, ratios: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Every cell of a pyramid on a map, level by level.

    Args:
        height, width: of the map.
        ratios: of these to the numbers of cells, for each level.
        like: what has the dtype and the device of the map.

    Returns:
        Level, row and column of each cell, ``(3, cells)``, and what to add to the logits of attention to them: None, but in a
        trace ``(1, 1, cells)``. There, cells are listed that may not exist, since a trace takes long over rounded numbers.
    """
    heights, widths = (count_cells(length, ratios, like.device) for length in (height, width))
    if torch.compiler.is_compiling():
        number = sum((height // ratio + 1) * (width // ratio + 1) for ratio in ratios)
        ratio = torch.tensor(ratios, device=like.device)
        rows, columns = (torch.full_like(ratio, length) // ratio + 1 for length in (height, width))
    else:
        number = sum(max(1, round(height / ratio)) * max(1, round(width / ratio)) for ratio in ratios)
        rows, columns = heights, widths
    ends = (rows * columns).cumsum(0)
    index = torch.arange(number, device=like.device)
    level = (index[:, None] >= ends).sum(1)
    index = index - (ends - rows * columns)[level]
    row = index // columns[level]
    column = index - row * columns[level]
    mask = None
    if torch.compiler.is_compiling():
        exists = (row < heights[level]) & (column < widths[level])
        mask = torch.zeros_like(row, dtype=like.dtype).masked_fill(~exists, float('-inf'))[None, None]
    return torch.stack([level, row, column]), mask


def pool(x: Tensor, rows: Tensor, columns: Tensor, cells: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The means over the cells of a pyramid, each level with a depth-wise 3 x 3 convolution of itself added.

    Args:
        x: ``(B, H, W, C)``.
        rows, columns: what ``average_cells`` gives for H and W.
        cells: which of the cells there are, as ``list_cells`` gives them.
        weight, bias: of the convolutions, level by level, ``(levels * C, 1, 3, 3)`` and ``(levels * C,)``.

    Returns:
        ``(B, cells, C)``.
    """
    channels = x.shape[3]
    levels = len(weight) // channels
    # In this order, and without flattening columns and channels, which a trace would ask how to part again.
    x = (columns @ x).unflatten(2, (levels, -1)).permute(0, 2, 3, 1, 4)
    x = rows.unflatten(0, (levels, -1))[:, None] @ x
    maps = x.permute(0, 1, 4, 3, 2).flatten(1, 2)
    maps = maps + F.conv2d(maps, weight, bias, padding=1, groups=len(weight))
    level, row, column = cells
    return maps.unflatten(1, (levels, channels)).permute(0, 1, 3, 4, 2)[:, level, row, column]


class PyramidAttention(nn.Module):
    """Attention of every pixel to the pooled pixels of a pyramid (P-MHSA in the paper)."""

    def __init__(self, dims: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dims, dims)
        self.norm = nn.LayerNorm(dims, eps=1e-5)
        self.kv = nn.Linear(dims, 2 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, rows: Tensor, columns: Tensor, cells: Tensor, weight: Tensor, bias: Tensor,
                mask: Tensor | None = None) -> Tensor:
        """``(B, H, W, C)``, what else ``pool`` takes, and what to add to the logits -> ``(B, H, W, C)``."""
        key, value = self.kv(self.norm(pool(x, rows, columns, cells, weight, bias))).chunk(2, -1)
        return self.proj(multi_head_attention(self.q(x).flatten(1, 2), key, value, self.num_heads, mask).view_as(x))


class Stage(layers.Stage):
    """A stage whose blocks share the convolutions of their pyramids.

    Args:
        patch_embed, blocks, with_cp: as there.
        dims: channels.
        ratios: of the map's height and width to those of each level.
    """

    def __init__(self, patch_embed: ConvEmbed, blocks: Sequence[Block], with_cp: bool, dims: int, ratios: Sequence[int]):
        super().__init__(patch_embed, blocks, with_cp)
        self.ratios = ratios
        self.pool_convs = nn.ModuleList(nn.Conv2d(dims, dims, 3, padding=1, groups=dims) for _ in ratios)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, H', W')``, channels last in memory."""
        x = self.patch_embed(x)
        height, width = x.shape[1:3]
        rows, columns = (average_cells(length, self.ratios, x) for length in (height, width))
        cells, mask = list_cells(height, width, self.ratios, x)
        weight, bias = (torch.cat([getattr(conv, name) for conv in self.pool_convs]) for name in ('weight', 'bias'))
        pyramid = [rows, columns, cells, weight, bias, *([] if mask is None else [mask])]
        for block in self.blocks:
            x = self.run_block(block, x, *pyramid)
        return x.permute(0, 3, 1, 2)


def flatten_projections(converted: dict[str, Tensor]) -> None:
    """Published FFNs have 1 x 1 convolutions where ours have linear layers."""
    for name, tensor in converted.items():
        if '.ffn.fc' in name and tensor.dim() == 4:
            converted[name] = tensor.flatten(1)


@MODELS.register_module()
class P2T(PyramidBackbone):
    """P2T: every pixel attends to a pyramid of four pooled maps; position enters by depth-wise convolutions alone.

    The outputs are the published classification code's on images of any size that it takes, from about 96 x 96 pixels on, and
    on multiples of 32 the published detection code's, which takes no others. In smaller images each pooled map has at least
    one cell, where that of the published code is empty.

    Args:
        arch: ``tiny``, ``small``, ``base`` or ``large``, or a dict of ``embed_dims``, ``depths``, ``num_heads`` and
            ``mlp_ratios``, each with one number for every stage.
        in_channels: channels of the input image.
        drop_path_rate: as published 0.1 for ``tiny`` and ``small``, 0.3 for ``base`` and ``large``.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the
    outputs and the errors. The maps have no norms, as published.
    """

    arch_zoo = {
        'tiny': dict(embed_dims=(48, 96, 240, 384), depths=(2, 2, 6, 3), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4)),
        'small': dict(embed_dims=(64, 128, 320, 512), depths=(2, 2, 9, 3), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4)),
        'base': dict(embed_dims=(64, 128, 320, 512), depths=(3, 4, 18, 3), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4)),
        'large': dict(embed_dims=(64, 128, 320, 640), depths=(3, 8, 27, 3), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4)),
    }
    published = Published(
        url='https://github.com/yuhuan-wu/P2T',
        licence='CC BY-NC-SA 4.0, non-commercial',
        released=('tiny', 'small', 'base', 'large'),
        rename=(
            (r'^(patch_embed|block|d_convs)([1-4])\.', stage_before),
            (r'^(stages\.\d)\.block\.', r'\1.blocks.'),
            (r'^(stages\.\d)\.d_convs\.', r'\1.pool_convs.'),
            (r'\.attn\.(q|kv)\.0\.', r'.attn.\1.'),
            (r'\.mlp\.conv\.', '.mlp.dwconv.'),
            (r'\.mlp\.', '.ffn.'),
        ),
        drop=r'^head\.',
        finish=flatten_projections,
        classifiers=('tiny', 'small', 'base', 'large'),
    )

    def __init__(self,
                 arch: str | Mapping = 'tiny',
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
        """Patches overlap, those of the first stage by three pixels."""
        dims, num_heads, mlp_ratio = (self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios'))
        patch_embed = ConvEmbed(in_channels, dims, 3 if index else 7, self.patch_sizes[index])
        blocks = [Block(PyramidAttention(dims, num_heads), InvertedResidual(dims, dims * mlp_ratio, F.hardswish), dims, rate,
                        EPS) for rate in drop_path_rates]
        return Stage(patch_embed, blocks, self.with_cp, dims, POOL_RATIOS[index])

    def init_random_weights(self) -> None:
        """Draw the published random initialisation: as torch has it for FFNs, which were convolutions, and else as Swin."""
        super().init_random_weights()
        for module in self.modules():
            if isinstance(module, InvertedResidual):
                module.fc1.reset_parameters()
                module.fc2.reset_parameters()
