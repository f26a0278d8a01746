"""MSG-Transformer: Exchanging Local Spatial Information by Manipulating Messenger Tokens (Fang et al., CVPR 2022,
arXiv 2105.15168)."""
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import layers
from ..layers import FFN, ConvEmbed, RelativePositionBias, crop, divide, fit_loaded, multi_head_attention
from ..weights import Published
from .base import is_positive, is_sequence
from .pyramid import PyramidBackbone

EPS = 1e-5  # of all norms
OUT_TYPES = ('featmap', 'messengers')


class Windows(NamedTuple):
    """Windows of one size, whose tokens lie one window after the other."""
    number: int
    length: int  # how many tokens a window has
    slots: Tensor | None  # which of a whole window's tokens these are; None for all


class Layout:
    """The order in which the blocks of a stage have the tokens of an image: window by window from the top left, in each the
    messenger and then the pixels, row by row.

    Windows at the bottom and right are cut off at the border, which is what padding gives that no token attends to. They come
    last, so that windows of one size are together.

    Args:
        height, width: of the map.
        size: height and width of a window.
        shuffle_size: how many windows exchange messengers, in height and in width.
        device: of the map.

    Attributes:
        windows: what ``Windows`` there are.
        mask: which tokens are keys, ``(windows, tokens of a window)``; None for all.
        messengers: places of the messengers, row by row.
        exchange: what ``exchange_messengers`` gives; None for no exchange.
    """

    mask: Tensor | None = None
    exchange: Tensor | None = None

    def __init__(self, height: int, width: int, size: int, shuffle_size: int, device: torch.device):
        rows, columns = (height + size - 1) // size, (width + size - 1) // size
        self.shape, self.messenger_shape = (height, width), (rows, columns)
        messengers = torch.arange(rows * columns, device=device).view(rows, columns)
        pixels = torch.arange(rows * columns, rows * columns + height * width, device=device).view(height, width)
        whole = torch.arange(1, size * size + 1, device=device).view(size, size)
        order, self.windows = [], []
        for top, bottom in split_at(height, size):
            for left, right in split_at(width, size):
                shape = min(size, bottom - top), min(size, right - left)
                inside = pixels[top:bottom, left:right].unflatten(0, (-1, shape[0])).unflatten(2, (-1, shape[1]))
                inside = inside.transpose(1, 2).flatten(2).flatten(0, 1)
                first = messengers[top // size:, left // size:][:(bottom - top) // shape[0], :(right - left) // shape[1]]
                order.append(torch.cat([first.reshape(-1, 1), inside], 1).flatten())
                slots = F.pad(whole[:shape[0], :shape[1]].flatten(), (1, 0)) if shape != (size, size) else None
                self.windows.append(Windows(len(inside), 1 + inside.shape[1], slots))
        self.order = torch.cat(order)
        places = torch.empty_like(self.order)
        places[self.order] = torch.arange(len(self.order), device=device)
        self.messengers, self.pixels = places[:rows * columns], places[rows * columns:]
        if shuffle_size > 1:
            self.exchange = exchange_messengers(rows * columns, rows, columns, shuffle_size, device)

    def split(self, x: Tensor, messengers: Tensor) -> Tensor:
        """``(B, H, W, C)`` of pixels and ``(B, H', W', C)`` of messengers -> tokens ``(B, N, C)``."""
        return torch.cat([messengers.flatten(1, 2), x.flatten(1, 2)], 1).index_select(1, self.order)

    def merge(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, N, C)`` -> ``(B, H, W, C)`` of pixels and ``(B, H', W', C)`` of messengers."""
        x, messengers = tokens.index_select(1, self.pixels), tokens.index_select(1, self.messengers)
        return x.unflatten(1, self.shape), messengers.unflatten(1, self.messenger_shape)


class PaddedLayout(Layout):
    """Whole windows with a mask of their padding, for traces that must hold for any size.

    A trace would distinguish whether there is one window or several, and one row or column of windows or several. So there is
    one window more than needed, and messengers have one row and one column more, of zeros.
    """

    def __init__(self, height: int, width: int, size: int, shuffle_size: int, device: torch.device):
        self.size, self.shape = size, (height, width)
        self.rows, self.columns = (height + size - 1) // size, (width + size - 1) // size
        self.count = self.rows * self.columns + 1
        self.row, self.column = divide(torch.arange(self.count, device=device), self.columns)
        row, column = divide(torch.arange(size * size, device=device), size)
        row, column = self.row[:, None] * size + row, self.column[:, None] * size + column
        self.mask = F.pad((row < height) & (column < width), (1, 0), value=True)
        self.pixel_row, self.pixel_column = row.clamp(max=height - 1), column.clamp(max=width - 1)
        self.windows = [Windows(self.count, 1 + size * size, None)]
        self.messengers = torch.arange(self.count, device=device) * (1 + size * size)
        if shuffle_size > 1:
            self.exchange = exchange_messengers(self.count, self.rows, self.columns, shuffle_size, device)

    def split(self, x: Tensor, messengers: Tensor) -> Tensor:
        """``(B, H, W, C)`` and ``(B, H' + 1, W' + 1, C)`` -> tokens ``(B, N, C)``."""
        pixels = x[:, self.pixel_row, self.pixel_column]
        return torch.cat([messengers[:, self.row, self.column][:, :, None], pixels], 2).flatten(1, 2)

    def merge(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, N, C)`` -> ``(B, H, W, C)`` and ``(B, H' + 1, W' + 1, C)``."""
        tokens = tokens.unflatten(1, (self.count, 1 + self.size * self.size))
        (window_row, row), (window_column, column) = (
            divide(torch.arange(length, device=tokens.device), self.size) for length in self.shape)
        x = tokens[:, window_row[:, None] * self.columns + window_column, 1 + row[:, None] * self.size + column]
        row, column = (torch.arange(length + 1, device=tokens.device)[:, None] for length in (self.rows, self.columns))
        messengers = tokens[:, (row * self.columns + column[:, 0]).clamp(max=self.count - 1), 0]
        return x, messengers * ((row < self.rows) & (column[:, 0] < self.columns))[..., None]


def split_at(length: int, size: int) -> list[tuple[int, int]]:
    """Beginning and end of the part of an axis that whole windows fill, and of what is left, where there is such."""
    whole = length // size * size
    return [(first, last) for first, last in ((0, whole), (whole, length)) if first < last]


def exchange_messengers(count: int, rows: int, columns: int, size: int, device: torch.device) -> Tensor:
    """Which group of channels each group of ``count`` messengers takes, numbered messenger by messenger.

    In a region of ``size x size`` windows, group ``b`` of messenger ``a`` and group ``a`` of messenger ``b`` change places,
    where both are there; in regions that the map's border cuts off, the others stay.

    Returns:
        Indices of groups, ``(count * size ** 2, )``.
    """
    window, group = divide(torch.arange(count * size * size, device=device), size * size)
    (top, row), (left, column) = (divide(index, size) for index in divide(window, columns))
    other_row, other_column = divide(group, size)
    other_row, other_column = top * size + other_row, left * size + other_column
    other = (other_row * columns + other_column) * size * size + row * size + column
    return torch.where((other_row < rows) & (other_column < columns), other, window * size * size + group)


class MessengerBias(RelativePositionBias):
    """Biases of attention by displacement between pixels, one for keys that are messengers where pixels ask, and one for all
    keys where messengers ask; the last has no effect, as a softmax does not see what all its logits have in common.

    Args:
        grid: height and width of a window.
        num_heads: attention heads.
    """

    def __init__(self, grid: int, num_heads: int):
        super().__init__(grid, num_heads)
        self.grid = grid
        self.messenger = nn.Parameter(torch.empty(num_heads, 2, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all from a normal distribution with a deviation of 0.02."""
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self) -> Tensor:  # type: ignore[override]
        """The bias ``(num_heads, 1 + grid ** 2, 1 + grid ** 2)`` of queries (second) and keys, the messenger first."""
        bias = super().forward(self.grid, self.grid)
        bias = torch.cat([self.messenger[:, 0].expand(-1, bias.shape[1], 1), bias], 2)
        return torch.cat([self.messenger[:, 1].expand(-1, 1, bias.shape[2]), bias], 1)


class WindowAttention(nn.Module):
    """Self-attention of the messenger and the pixels of each window."""

    def __init__(self, dims: int, num_heads: int, window_size: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, 3 * dims)
        self.position_bias = MessengerBias(window_size, num_heads)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """``(B, N, C)``, tokens in the order of the layout -> the same."""
        qkv, whole = self.qkv(x), self.position_bias()
        parts = [qkv]
        if len(layout.windows) > 1:
            parts = qkv.split([windows.number * windows.length for windows in layout.windows], 1)
        outs = []
        for part, windows in zip(parts, layout.windows):
            bias = whole
            if windows.slots is not None:
                bias = bias.index_select(1, windows.slots).index_select(2, windows.slots)
            if layout.mask is not None:
                mask = torch.zeros_like(layout.mask, dtype=bias.dtype).masked_fill(~layout.mask, float('-inf'))
                bias = bias + mask.expand(x.shape[0], -1, -1).flatten(0, 1)[:, None, None]
            part = part.unflatten(1, (windows.number, windows.length)).flatten(0, 1)
            query, key, value = part.chunk(3, -1)
            out = multi_head_attention(query, key, value, self.num_heads, bias)
            outs.append(out.unflatten(0, (x.shape[0], windows.number)).flatten(1, 2))
        return self.proj(outs[0] if len(outs) == 1 else torch.cat(outs, 1))


class Block(layers.Block):
    """A block in which the messengers of neighbouring windows exchange groups of channels between attention and FFN.

    Args:
        num_groups: how many groups, one for each window of a region.
        *args: those of ``layers.Block``.
    """

    attn: nn.Module

    def __init__(self, num_groups: int, *args: Any):
        super().__init__(*args)
        self.num_groups = num_groups

    def forward(self, x: Tensor, layout: Layout) -> Tensor:  # type: ignore[override]
        """``(B, N, C)``, tokens in the order of the layout -> the same."""
        x = x + self.drop_path(self.attn(self.norm1(x), layout))
        if layout.exchange is not None:
            messengers = x.index_select(1, layout.messengers)
            groups = messengers.unflatten(2, (self.num_groups, -1)).flatten(1, 2).index_select(1, layout.exchange)
            x.index_copy_(1, layout.messengers, groups.view_as(messengers))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class Stem(ConvEmbed):
    """Overlapping patches, and the learned messenger of each window, one of as many as a region has windows.

    The kernels begin two pixels before each patch. Zeros at the bottom and right make as many patches as pixels ask for.
    """

    def __init__(self, in_channels: int, embed_dims: int, window_size: int, shuffle_size: int):
        super().__init__(in_channels, embed_dims, 7, 4, 2)
        self.window_size = window_size
        self.shuffle_size = shuffle_size
        self.messengers = nn.Parameter(torch.empty(1, shuffle_size**2, 1, embed_dims))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the messengers from a normal distribution with a deviation of 0.02."""
        nn.init.trunc_normal_(self.messengers, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """``(B, C_in, H, W)`` -> ``(B, H', W', C)``, H' = ceil(H / 4), and messengers ``(B, H'', W'', C)``, H'' =
        ceil(H' / window_size)."""
        x = super().forward(F.pad(x, (0, 2, 0, 2)))
        more = int(torch.compiler.is_compiling())  # row and column, see PaddedLayout
        row, column = (torch.arange((length + self.window_size - 1) // self.window_size + more, device=x.device)
                       % self.shuffle_size for length in x.shape[1:3])
        messengers = self.messengers[0, row[:, None] * self.shuffle_size + column, 0]
        return x, messengers.to(x.dtype).expand(x.shape[0], -1, -1, -1)


class Transition(ConvEmbed):
    """Half the resolution of pixels, and of messengers with the same weights."""

    def __init__(self, in_channels: int, embed_dims: int):
        super().__init__(in_channels, embed_dims, 3, 2, 1)

    def forward(self, x: Tensor, messengers: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """``(B, C_in, H, W)`` and ``(B, C_in, H', W')`` -> ``(B, ceil(H / 2), ceil(W / 2), C)`` and the same of H', W'."""
        if torch.compiler.is_compiling():  # for one more row and column, see PaddedLayout
            return super().forward(x), super().forward(F.pad(messengers, (0, 1, 0, 1)))
        return self.embed(x), self.embed(messengers)

    def embed(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / 2), ceil(W / 2), C)``."""
        if 1 in x.shape[2:]:  # of one column, CPUs leave parts of the kernels' gradient unset in bfloat16 (torch 2.11)
            x = F.pad(x, (0, int(x.shape[3] == 1), 0, int(x.shape[2] == 1)))
        return super().forward(x)


class Stage(layers.Stage):
    """A stage of pixels and of messengers, both of which it hands on.

    Args:
        window_size, shuffle_size: pixels of a window, and windows of a region, in height and in width.
        *args: those of ``layers.Stage``.
    """

    def __init__(self, window_size: int, shuffle_size: int, *args: Any):
        super().__init__(*args)
        self.window_size = window_size
        self.shuffle_size = shuffle_size
        self.register_load_state_dict_pre_hook(fit_loaded)

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """``(B, C_in, H, W)``, and messengers ``(B, C_in, H', W')`` but in the first stage -> both of this stage, channels last
        in memory."""
        x, messengers = self.patch_embed(*maps)
        height, width = x.shape[1:3]
        kind = PaddedLayout if torch.compiler.is_compiling() else Layout
        layout = kind(height, width, self.window_size, self.shuffle_size, x.device)
        x = layout.split(x, messengers)
        for block in self.blocks:
            x = self.run_block(block, x, layout)
        x, messengers = layout.merge(x)
        return x.permute(0, 3, 1, 2), messengers.permute(0, 3, 1, 2)

    def fit_state_dict(self, state_dict: dict, prefix: str) -> None:
        """Leave out a classifier's norm where the map has none."""
        if not isinstance(self.norm, nn.Module):
            state_dict.pop(f'{prefix}norm.weight', None)
            state_dict.pop(f'{prefix}norm.bias', None)


@MODELS.register_module()
class MSGTransformer(PyramidBackbone):
    """MSG-Transformer: attention inside windows that do not move; each window has a messenger token, and the messengers of
    neighbouring windows exchange channels.

    On heights and widths that are multiples of 224 the outputs are the published model's, which takes no others. Here images
    are padded with zeros at the bottom and right to whole patches. Windows at the border are as padding that no token attends
    to would make them, and messengers exchange channels with those windows of their region that are there. Code for dense
    prediction was not published: the maps are those that the published classifier's stages hand on, without norms, unless
    ``map_norms`` asks for them, as the configs do.

    Args:
        arch: ``tiny``, ``small`` or ``base``, or a dict of ``embed_dims``, ``depths``, ``num_heads``, ``mlp_ratios`` and
            ``shuffle_sizes`` (how many windows exchange messengers, in height and in width; 1 for none), each with one number
            for every stage; ``window_size``, in pixels of the maps of all stages; and ``map_norms``, the stages, from 0,
            whose maps are normalised. The published classifier has the norm of stage 3.
        in_channels: channels of the input image.
        drop_path_rate: as published for ImageNet 0.1 for ``tiny``, 0.3 for ``small``, 0.5 for ``base``.
        out_type: ``featmap`` for maps of pixels, ``messengers`` for those of messengers: of 224 x 224 pixels, one in stage 3,
            which the published classifier reads. The position biases of the last block's pixels are not in it.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the outputs and
    the errors. ``strides`` are those of the maps of pixels.

    Raises:
        ValueError: also for another ``out_type``, and for ``embed_dims`` whose messengers have no equal groups of channels.
    """

    adds_norms = True
    arch_zoo = {
        name: dict(embed_dims=(dims, 2 * dims, 4 * dims, 8 * dims), depths=(2, 4, depth, 4),
                   num_heads=(dims // 32, dims // 16, dims // 8, dims // 4), mlp_ratios=(4, 4, 4, 4),
                   shuffle_sizes=(4, 4, 2, 1), window_size=7, map_norms=())
        for name, dims, depth in (('tiny', 64, 12), ('small', 96, 12), ('base', 96, 28))
    }
    arch_rules = {
        'window_size': ('a positive whole number', is_positive),
        'map_norms': ('stages among 0, 1, 2, 3', lambda value: is_sequence(value) and all(i in range(4) for i in value)),
    }
    published = Published(
        url='https://github.com/hustvl/MSG-Transformer',
        licence='Apache-2.0',
        released=('tiny', 'small', 'base'),
        rename=(
            (r'^msg_tokens$', 'stages.0.patch_embed.messengers'),
            (r'^patch_embed\.', 'stages.0.patch_embed.'),
            (r'^layers\.(\d)\.downsample\.reduction\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.proj.'),
            (r'^layers\.(\d)\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.'),
            (r'^layers\.', 'stages.'),
            (r'^norm\.', 'stages.3.norm.'),
            (r'\.relative_position_bias_table$', '.position_bias.table'),
            (r'\.rel_pos_msg$', '.position_bias.messenger'),
            (r'\.mlp\.', '.ffn.'),
        ),
        drop=r'^head\.|\.relative_position_index$',
        classifiers=('tiny', 'small', 'base'),
    )

    def __init__(self,
                 arch: str | Mapping = 'tiny',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.1,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 out_type: str = 'featmap',
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        if out_type not in OUT_TYPES:
            raise ValueError(f'out_type of MSGTransformer must be {" or ".join(OUT_TYPES)}, got {out_type!r}')
        for dims, size in zip(self.arch['embed_dims'], self.arch['shuffle_sizes']):
            if dims % size**2:
                raise ValueError('each of embed_dims must be a multiple of the square of its shuffle_sizes, one group of '
                                 f'channels for each window, got {dims} and {size}')
        self.out_type = out_type
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Windows have the same size in every stage."""
        dims, num_heads, mlp_ratio, shuffle_size = (
            self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios', 'shuffle_sizes'))
        size = self.arch['window_size']
        patch_embed = Transition(in_channels, dims) if index else Stem(in_channels, dims, size, shuffle_size)
        blocks = [
            Block(shuffle_size**2, WindowAttention(dims, num_heads, size), FFN(dims, dims * mlp_ratio, recompute=True), dims,
                  rate, EPS) for rate in drop_path_rates
        ]
        return Stage(size, shuffle_size, patch_embed, blocks, self.with_cp)

    def norm_layer(self, index: int) -> partial | None:
        """A layer norm of the maps that ``map_norms`` names."""
        return partial(nn.LayerNorm, eps=EPS) if index in self.arch['map_norms'] else None

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)`` -> what ``out_type`` says of the stages in ``out_indices``."""
        maps: tuple[Tensor, ...] = (x, )
        outs = []
        for index, stage in enumerate(self.stages):
            maps = stage(*maps)
            if index in self.out_indices:
                x = maps[OUT_TYPES.index(self.out_type)]
                if torch.compiler.is_compiling() and self.out_type == 'messengers':
                    x = crop(x, x.shape[2] - 1, x.shape[3] - 1)
                outs.append(self.get_map(index, x).contiguous())
        return tuple(outs)
