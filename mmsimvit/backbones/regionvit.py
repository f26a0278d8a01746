"""RegionViT: Regional-to-Local Attention for Vision Transformers (Chen et al., ICLR 2022, arXiv 2106.02689)."""
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import isqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import FFN, DropPath, RelativePositionBias, divide, fit_loaded, multi_head_attention, run_block
from ..weights import Published
from .base import is_positive, is_sequence
from .pyramid import PyramidBackbone

BLOCK_EPS = 1e-6  # of the norms in blocks
MAP_EPS = 1e-5  # of all others: in the stem, in transitions, of the maps


class ThreeConvs(nn.Module):
    """The stem of local tokens that overlaps more: three convolutions, of which the first two have norms."""

    def __init__(self, in_channels: int, embed_dims: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, embed_dims // 4, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(embed_dims // 4, eps=MAP_EPS)
        self.conv2 = nn.Conv2d(embed_dims // 4, embed_dims // 2, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(embed_dims // 2, eps=MAP_EPS)
        self.conv3 = nn.Conv2d(embed_dims // 2, embed_dims, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, ceil(H / 4), ceil(W / 4))``."""
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = F.gelu(norm(conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.conv3(x)


def count_spare() -> int:
    """How many rows and columns more than there are a map of regional tokens has, at the bottom and right.

    There may be a single regional token, and a trace would ask whether there is. What is spare holds any numbers.
    """
    return 1 if torch.compiler.is_compiling() else 0


def zero_spare(x: Tensor) -> Tensor:
    """``(B, H, W, C)`` with zeros in the spare rows and columns, as a convolution is to see them."""
    spare = count_spare()
    if not spare:
        return x
    row, column = (torch.arange(length, device=x.device) < length - spare for length in x.shape[1:3])
    return torch.where((row[:, None] & column)[:, :, None], x, 0)


class RegionalEmbed(nn.Conv2d):
    """One token for each square of ``size`` pixels, by a convolution whose stride is its kernel.

    The image lies in the middle of zero padding. If its height or its width is no multiple of ``size``, both are padded by
    what they lack to the next multiple, and that which is a multiple by ``size``, as published. Kernels of another size are
    loaded after bicubic resampling, as published.
    """

    def __init__(self, in_channels: int, embed_dims: int, size: int):
        super().__init__(in_channels, embed_dims, size, size)
        self.register_load_state_dict_pre_hook(fit_loaded)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, H // size, W // size, C)``, with another row and column if there is padding."""
        size, shape = self.kernel_size[0], x.shape[2:]
        if not torch.compiler.is_compiling():
            if any(length % size for length in shape):
                rows, columns = (size - length % size for length in shape)
                x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            return super().forward(x).permute(0, 2, 3, 1)
        # A trace would ask whether there is padding, and how much of it. So it picks the pixels of each token.
        off = [(length % size + size - 1) // size for length in shape]  # 0 for a multiple, or 1
        padded = (sum(off) + 1) // 2
        # The token behind the last is of padding alone. In this form it is seen that there is at least one before.
        rows, columns = ((length - 1) // size + 2 + padded * (1 - part) for length, part in zip(shape, off))
        row, column = divide(torch.arange(rows * columns, device=x.device), columns)
        pixel = divide(torch.arange(size**2, device=x.device), size)
        most = size // 2  # zeros at the top, and at the left
        row, column = (most + place[:, None] * size + inside - padded * ((size - length % size) // 2)
                       for place, inside, length in zip((row, column), pixel, shape))
        x = F.pad(x, (most, 2 * size, most, 2 * size))[:, :, row, column].transpose(1, 2).flatten(2)
        return F.linear(x, self.weight.flatten(1), self.bias).unflatten(1, (rows, columns))

    def fit_state_dict(self, state_dict: dict, prefix: str) -> None:
        """Resample, in place of the entry, kernels for regions of another size."""
        kernels = state_dict.get(f'{prefix}weight')
        if (isinstance(kernels, Tensor) and kernels.is_floating_point() and kernels.dim() == 4 and min(kernels.shape) > 0
                and kernels.shape[2:] != self.weight.shape[2:]):
            state_dict[f'{prefix}weight'] = F.interpolate(kernels, size=self.kernel_size, mode='bicubic', align_corners=False)


class Stem(nn.Module):
    """The first local tokens, one for 4 x 4 pixels, and the first regional ones, one for each window of local ones."""

    def __init__(self, in_channels: int, embed_dims: int, num_convs: int, window_size: int):
        super().__init__()
        self.local = (ThreeConvs(in_channels, embed_dims) if num_convs == 3
                      else nn.Conv2d(in_channels, embed_dims, 8, stride=4, padding=3))
        self.regional = RegionalEmbed(in_channels, embed_dims, 4 * window_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C_in, H, W)`` -> local tokens ``(B, h, w, C)`` and regional tokens ``(B, H', W', C)``."""
        regions, (height, width) = self.regional(x), x.shape[2:]
        if height < 2 or width < 2:  # of which one convolution of 8 x 8 pixels makes no token; three see zeros here anyway
            x = F.pad(x, (0, max(2 - width, 0), 0, max(2 - height, 0)))
        x = x.contiguous(memory_format=torch.channels_last)  # so that norms find channels innermost
        return self.local(x).permute(0, 2, 3, 1), regions


class Transition(nn.Module):
    """Half the resolution and more channels, of local and of regional tokens with the same weights."""

    def __init__(self, in_channels: int, embed_dims: int):
        super().__init__()
        self.norm = nn.LayerNorm(in_channels, eps=MAP_EPS)
        self.proj = nn.Conv2d(in_channels, embed_dims, 3, stride=2, padding=1, groups=in_channels)

    def forward(self, x: Tensor, spare: int = 0) -> Tensor:
        """``(B, H, W, C_in)``, of which ``spare`` rows and columns do not count -> ``(B, ceil(H / 2), ceil(W / 2), C)``."""
        x = F.gelu(self.norm(x))
        if spare:
            x = F.pad(zero_spare(x), (0, 0, 0, spare, 0, spare))  # whose half is to spare again
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Windows(NamedTuple):
    """Windows of one size, which follow each other in a sequence of tokens."""
    number: int
    size: tuple[int, int]  # rows and columns of the local tokens, which follow the regional one
    mask: Tensor | None  # which keys (last) each query (second dimension) sees, (number, tokens, tokens); all if None


class Layout:
    """The order of the tokens of two maps in windows: each regional token is followed by the local ones of its window.

    The windows cover the map of local tokens and may reach beyond. The published code pads it with zeros at the bottom and
    right, and masks them: in the last windows of rows, no token sees a column beyond the map; in the last windows of columns
    no row. In the very last window a token sees another if both lie in the map's rows *or* both in its columns. Padding takes
    part there, and nothing is masked if the map ends early in one direction alone. Padding that no token sees is left out.

    Args:
        shape: rows and columns of the local tokens.
        grid: rows and columns of the regional tokens, the spare ones of a trace counted.
        window_size: rows and columns of a window.
        device: where the tokens are.

    Attributes:
        windows: those of each size, in their order.
        regional: the places of the regional tokens, ``(windows, )``.
        seen: what is added to the logits of regional tokens as keys, ``(1, 1, 1, windows)``; None for nothing.
    """

    def __init__(self, shape: Sequence[int], grid: Sequence[int], window_size: int, device: torch.device):
        self.shape, self.grid = tuple(shape), tuple(grid)
        spare = count_spare()
        (height, width), (rows, columns) = shape, (length - spare for length in grid)
        # How many rows and columns of the last windows lie in the map.
        inside = window_size - rows * window_size + height, window_size - columns * window_size + width
        padding = grid[0] * grid[1] + height * width  # the place of a zero behind the regional and the local tokens
        self.windows, sources, regional, length = [], [], [], 0
        for size, row, column, is_masked in self._find_windows(rows, columns, inside, window_size, device):
            y, x = (place[:, None] * window_size + torch.arange(part, device=device)
                    for place, part in zip((row, column), size))
            y, x = y[:, :, None], x[:, None]
            local = torch.where((y < height) & (x < width), grid[0] * grid[1] + y * width + x, padding).flatten(1)
            region = torch.where(row < rows, row * grid[1] + column, padding)
            sources.append(torch.cat([region[:, None], local], 1).flatten())
            mask = self._mask((row == rows - 1, column == columns - 1), inside, window_size) if is_masked else None
            self.windows.append(Windows(row.shape[0], size, mask))
            tokens = 1 + size[0] * size[1]
            regional.append(torch.arange(row.shape[0], device=device) * tokens + length)
            length += row.shape[0] * tokens
        self.sources, self.regional = torch.cat(sources), torch.cat(regional)
        places = torch.zeros(padding + 1, dtype=torch.long, device=device)
        self.places = places.scatter(0, self.sources, torch.arange(length, device=device))
        self.seen = None
        if spare:
            is_spare = torch.arange(rows * columns + 1, device=device) == rows * columns
            self.seen = torch.zeros_like(is_spare, dtype=torch.float32).masked_fill(is_spare, float('-inf'))[None, None, None]

    def _find_windows(self, rows: int, columns: int, inside: tuple[int, int], window_size: int, device: torch.device
                      ) -> list[tuple[tuple[int, int], Tensor, Tensor, bool]]:
        """The sizes of windows; of each size their rows and columns in the grid, ``(number, )``, and whether it has a mask."""
        if torch.compiler.is_compiling():  # all of one size, and one too many
            row, column = divide(torch.arange(rows * columns + 1, device=device), columns)
            return [((window_size, window_size), row, column, True)]
        found: dict[tuple[tuple[int, int], bool], list[Tensor]] = {}
        for top, bottom, height in ((0, rows - 1, window_size), (rows - 1, rows, inside[0])):
            for left, right, width in ((0, columns - 1, window_size), (columns - 1, columns, inside[1])):
                is_last = bottom == rows and right == columns
                size = (window_size, window_size) if is_last else (height, width)
                if bottom > top and right > left:
                    part = torch.cartesian_prod(torch.arange(top, bottom, device=device),
                                                torch.arange(left, right, device=device))
                    found.setdefault((size, is_last and max(inside) < window_size), []).append(part)
        grids = ((*key, torch.cat(parts)) for key, parts in found.items())
        return [(size, grid[:, 0], grid[:, 1], is_masked) for size, is_masked, grid in grids]

    def _mask(self, is_last: tuple[Tensor, Tensor], inside: tuple[int, int], window_size: int) -> Tensor:
        """What the tokens of windows see, ``(number, tokens, tokens)``, by whether these are the last in each direction."""
        place = torch.arange(window_size, device=is_last[0].device)
        in_rows, in_columns = ((place < part).expand(window_size, -1) for part in inside)
        # A regional token counts as one in the map.
        in_rows, in_columns = (F.pad(valid.flatten(), (1, 0), value=True) for valid in (in_rows.t(), in_columns))
        both_in_rows, both_in_columns = (valid[:, None] & valid for valid in (in_rows, in_columns))
        last_row, last_column = (last[:, None, None] for last in is_last)
        is_very_last = last_row & last_column  # in an expression without torch.where, which ONNX Runtime has not for booleans
        return (is_very_last & (both_in_rows | both_in_columns)
                | ~is_very_last & (both_in_rows | ~last_row) & (both_in_columns | ~last_column))

    def split(self, x: Tensor, regions: Tensor) -> Tensor:
        """``(B, h, w, C)`` and ``(B, H', W', C)`` -> the tokens of both, and zeros, in windows, ``(B, tokens, C)``."""
        zero = x.new_zeros(x.shape[0], 1, x.shape[-1])
        return torch.cat([regions.flatten(1, 2), x.flatten(1, 2), zero], 1).index_select(1, self.sources)

    def merge(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, tokens, C)`` -> what ``split`` takes, ``(B, h, w, C)`` and ``(B, H', W', C)``."""
        number = self.grid[0] * self.grid[1]
        regional = torch.arange(number, device=tokens.device)
        local = torch.arange(self.shape[0] * self.shape[1], device=tokens.device) + number
        x, regions = (tokens.index_select(1, self.places.index_select(0, index)) for index in (local, regional))
        return x.unflatten(1, self.shape), regions.unflatten(1, self.grid)


class PositionBias(RelativePositionBias):
    """A relative position bias of the local tokens, in a published order.

    The rows of the table are displacements of the key from the query, from 0 on and then those below 0, shifted by half the
    window: row and column ``(displacement + window_size // 2) % (2 * window_size - 1)``. Tables of other windows are resampled
    in this order, as published.
    """

    def forward(self, height: int, width: int) -> Tensor:
        """The bias ``(num_heads, 1 + height * width, 1 + height * width)`` of queries (second) and keys (third dimension) of
        the first rows and columns of a window and, as the first, its regional token, for which it is zero."""
        size = isqrt(len(self.table))
        table = self.table.t().unflatten(1, (size, size))
        for dim, length in ((1, height), (2, width)):
            place = torch.arange(length, device=table.device)
            offset = (place - place[:, None] + (size + 1) // 4) % size
            table = table.index_select(dim, offset.flatten())
        table = table.unflatten(1, (height, height)).unflatten(3, (width, width)).transpose(2, 3)
        return F.pad(table.flatten(1, 2).flatten(2, 3), (1, 0, 1, 0))


class Attention(nn.Module):
    """Multi-head self-attention, with the same weights of regional tokens to each other and of the tokens in each window."""

    def __init__(self, dims: int, num_heads: int, window_size: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, 3 * dims)
        self.position_bias = PositionBias(window_size, num_heads)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, windows: Sequence[Windows] = (), bias: Tensor | None = None) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, C)``, inside windows if there are some, or with a bias of the logits."""
        qkv = self.qkv(x)
        if not windows:
            query, key, value = qkv.chunk(3, -1)
            return self.proj(multi_head_attention(query, key, value, self.num_heads, bias))
        lengths = [number * (1 + rows * columns) for number, (rows, columns), _ in windows]
        parts = [qkv] if len(windows) == 1 else qkv.split(lengths, 1)
        return self.proj(torch.cat([self._attend(part, *kind) for part, kind in zip(parts, windows)], 1))

    def _attend(self, qkv: Tensor, number: int, size: tuple[int, int], mask: Tensor | None) -> Tensor:
        """``(B, number * tokens, 3 * C)`` -> ``(B, number * tokens, C)``."""
        batch, bias = qkv.shape[0], self.position_bias(*size)
        qkv = qkv.unflatten(1, (number, 1 + size[0] * size[1])).flatten(0, 1)
        if mask is not None:  # half of the least number, to which a bias may be added
            bias = torch.where(mask[:, None], bias.to(qkv.dtype), torch.finfo(qkv.dtype).min / 2)
            bias = bias.expand(batch, *bias.shape).flatten(0, 1)
        query, key, value = qkv.chunk(3, -1)
        return multi_head_attention(query, key, value, self.num_heads, bias).unflatten(0, (batch, number)).flatten(1, 2)


class Block(nn.Module):
    """Regional-to-local attention and FFN.

    Regional tokens attend to each other, then each window to itself and its regional token; all go through the FFN. A position
    generator (PEG of 2102.10882) may follow, a depth-wise convolution of both maps that is added to them.
    """

    def __init__(self, attn: Attention, ffn: FFN, dims: int, drop_path: float, has_peg: bool):
        super().__init__()
        self.norm0 = nn.LayerNorm(dims, eps=BLOCK_EPS)
        self.norm1 = nn.LayerNorm(dims, eps=BLOCK_EPS)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dims, eps=BLOCK_EPS)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path)
        self.peg = nn.Conv2d(dims, dims, 3, padding=1, groups=dims, bias=False) if has_peg else None

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """``(B, tokens, C)`` -> ``(B, tokens, C)``."""
        regions = self.drop_path(self.attn(self.norm0(x.index_select(1, layout.regional)), bias=layout.seen))
        x = x.index_add(1, layout.regional, regions.to(x.dtype))
        x = x + self.drop_path(self.attn(self.norm1(x), layout.windows))
        x = x + self.drop_path(self.ffn(self.norm2(x)))
        if self.peg is None:
            return x
        local, regions = layout.merge(x)
        regions = zero_spare(regions)
        local, regions = (y + self.peg(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for y in (local, regions))
        return layout.split(local, regions)  # with new zeros


class Stage(nn.Module):
    """The stem or a transition, and blocks.

    Args:
        patch_embed: a ``Stem``, or a ``Transition``.
        blocks: the blocks.
        window_size: rows and columns of a window.
        with_cp: recompute each block in the backward pass.
    """

    def __init__(self, patch_embed: nn.Module, blocks: Sequence[Block], window_size: int, with_cp: bool):
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.register_module('norm', None)  # of the map, which the backbone sets
        self.window_size = window_size
        self.with_cp = with_cp

    def forward(self, x: Tensor, regions: Tensor | None) -> tuple[Tensor, Tensor]:
        """The previous stage's ``(B, C_in, H, W)`` and ``(B, H', W', C_in)``, or the image and None -> this stage's
        ``(B, C, h, w)`` and ``(B, h', w', C)``."""
        if regions is None:
            x, regions = self.patch_embed(x)
        else:
            x, regions = self.patch_embed(x.permute(0, 2, 3, 1)), self.patch_embed(regions, count_spare())
        layout = Layout(x.shape[1:3], regions.shape[1:3], self.window_size, x.device)
        tokens = layout.split(x, regions)
        for block in self.blocks:
            tokens = run_block(block, self.with_cp, tokens, layout)
        x, regions = layout.merge(tokens)
        return x.permute(0, 3, 1, 2), regions


def reshape(converted: dict[str, Tensor]) -> None:
    """Give what has another shape in published checkpoints its own: norms of maps, ``(1, C, 1, 1)``, and tables of position
    biases, which have the heads first."""
    for name, tensor in converted.items():
        if tensor.dim() == 4 and tensor.shape[::3] == (1, 1) and 'norm' in name:
            converted[name] = tensor.flatten()
        elif tensor.dim() == 2 and name.endswith('.position_bias.table'):
            converted[name] = tensor.t()


@MODELS.register_module()
class RegionViT(PyramidBackbone):
    """RegionViT: coarse regional tokens attend to each other, and the local tokens of each window to themselves and to the
    regional token of their window.

    The outputs are the published detection code's on images of any size: the maps of the local tokens, without the regional
    ones. With ``stem_convs=1``, as in ``medium``, ``base`` and its other forms, the first map has ``(H + 2) // 4`` rows, and
    each other one half of the rows before, rounded up. Columns follow the same rule.

    Args:
        arch: ``tiny``, ``small``, ``medium`` or ``base``; ``small_w14`` or ``base_w14`` (S+ and B+ in the publication);
            ``small_w14_peg`` or ``base_w14_peg``; or a dict of ``embed_dims``, ``depths``, ``num_heads`` and ``mlp_ratios``,
            each with one number for every stage; ``window_size``, rows and columns of local tokens with one regional token;
            ``stem_convs``, 3 or 1; ``peg``, whether a position generator follows the first block of each stage; and
            ``map_norms``, the stages, from 0, whose maps are normalised, for the next stage too. The published detectors have
            a norm in each stage, the published classifiers in none. Each of ``embed_dims`` is a multiple of the one before.
        in_channels: channels of the input image.
        drop_path_rate: as published 0.1 for ImageNet and 0.2 in detectors.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the errors and,
    but for the sizes of the maps, the outputs. Checkpoints of other windows are loaded after bicubic resampling.

    Raises:
        ValueError: also for ``embed_dims`` that are no multiples of those before.
    """

    carries_norms = True
    adds_norms = True
    arch_zoo = {
        name: dict(embed_dims=(dims, 2 * dims, 4 * dims, 8 * dims), depths=(2, 2, depth, 2),
                   num_heads=(dims // 32, dims // 16, dims // 8, dims // 4), mlp_ratios=(4, 4, 4, 4),
                   window_size=window_size, stem_convs=stem_convs, peg=peg, map_norms=(0, 1, 2, 3))
        for name, dims, depth, stem_convs, window_size, peg in (
            ('tiny', 64, 8, 3, 7, False),
            ('small', 96, 8, 3, 7, False),
            ('medium', 96, 14, 1, 7, False),
            ('base', 128, 14, 1, 7, False),
            ('small_w14', 96, 8, 3, 14, False),
            ('base_w14', 128, 14, 1, 14, False),
            ('small_w14_peg', 96, 8, 3, 14, True),
            ('base_w14_peg', 128, 14, 1, 14, True),
        )
    }
    arch_rules = {
        'window_size': ('a positive whole number', is_positive),
        'stem_convs': ('1 or 3', lambda value: value in (1, 3)),
        'peg': ('True or False', lambda value: isinstance(value, bool)),
        'map_norms': ('stages among 0, 1, 2, 3', lambda value: is_sequence(value) and all(i in range(4) for i in value)),
    }

    published = Published(
        url='https://github.com/IBM/RegionViT',
        licence='Apache-2.0',
        # Of medium the published link leads to the weights of small. Those with w14 are detectors'.
        released=('tiny', 'small', 'base', 'small_w14', 'base_w14', 'small_w14_peg', 'base_w14_peg'),
        rename=(
            (r'^patch_embed\.proj\.0\.', 'stages.0.patch_embed.local.conv1.'),
            (r'^patch_embed\.proj\.1\.', 'stages.0.patch_embed.local.norm1.'),
            (r'^patch_embed\.proj\.3\.', 'stages.0.patch_embed.local.conv2.'),
            (r'^patch_embed\.proj\.4\.', 'stages.0.patch_embed.local.norm2.'),
            (r'^patch_embed\.proj\.6\.', 'stages.0.patch_embed.local.conv3.'),
            (r'^patch_embed\.proj\.', 'stages.0.patch_embed.local.'),
            (r'^cls_token\.proj\.', 'stages.0.patch_embed.regional.'),
            # Transitions have two names, for one and the same module.
            (r'^layers\.(\d)\.block\.0\.proj(?:_cls)?\.0\.', r'stages.\1.patch_embed.norm.'),
            (r'^layers\.(\d)\.block\.0\.proj(?:_cls)?\.2\.', r'stages.\1.patch_embed.proj.'),
            (r'^layers\.(\d)\.block\.(\d+)\.', lambda m: f'stages.{m[1]}.blocks.{int(m[2]) - 1}.'),
            (r'^layers\.(\d)\.peg\.', r'stages.\1.blocks.0.peg.'),
            (r'^norm([0-3])\.', r'stages.\1.norm.'),
            (r'\.attn\.rel_pos$', '.attn.position_bias.table'),
            (r'\.mlp\.', '.ffn.'),
        ),
        drop=r'^(head|norm)\.',  # the classifier, and the norm of the regional tokens that it reads
        finish=reshape,
    )

    def __init__(self,
                 arch: str | Mapping = 'small',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.2,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        dims = self.arch['embed_dims']
        if any(after % before for before, after in pairwise(dims)):
            raise ValueError(f'each of embed_dims must be a multiple of the one before, got {dims}')
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """The position generator follows the first block."""
        dims, num_heads, mlp_ratio = (self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios'))
        window_size, stem_convs, peg = (self.arch[key] for key in ('window_size', 'stem_convs', 'peg'))
        blocks = [Block(Attention(dims, num_heads, window_size), FFN(dims, dims * mlp_ratio), dims, rate,
                        has_peg=peg and number == 0) for number, rate in enumerate(drop_path_rates)]
        patch_embed = Transition(in_channels, dims) if index else Stem(in_channels, dims, stem_convs, window_size)
        return Stage(patch_embed, blocks, window_size, self.with_cp)

    def norm_layer(self, index: int) -> partial | None:
        """A layer norm of the maps that ``map_norms`` names."""
        return partial(nn.LayerNorm, eps=MAP_EPS) if index in self.arch['map_norms'] else None

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, C, H, W)``, which the stem takes -> the contiguous maps of the stages in ``out_indices``."""
        outs, regions = [], None
        for index, stage in enumerate(self.stages):
            x, regions = stage(x, regions)
            x = self.get_map(index, x)
            if index in self.out_indices:
                outs.append(x.contiguous())
        return tuple(outs)
