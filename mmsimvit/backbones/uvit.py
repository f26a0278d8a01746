"""UViT: A Simple Single-Scale Vision Transformer for Object Detection and Instance Segmentation (Chen et al., ECCV 2022,
arXiv 2112.09747)."""
from collections.abc import Mapping, Sequence
from functools import partial
from math import lcm, sqrt
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import (
    FFN,
    Block,
    PositionTable,
    crop,
    divide,
    fit_loaded,
    multi_head_attention,
    pad_to_multiple,
    resize,
    run_block,
)
from ..weights import Published
from .base import FeatureInfo, is_numbers, is_positive, is_sequence
from .plain import PlainBackbone

EPS = 1e-6


class PatchEmbedding(nn.Module):
    """Non-overlapping patches of an image that is padded with zeros, at the bottom and right, to multiples of ``multiple``.

    The kernels of a checkpoint with patches of another size are resized bilinearly when they are loaded, as the paper does
    from 16 x 16 pixels in pre-training to 8 x 8. It does not say how; the response to a constant patch changes with the area.
    """

    def __init__(self, in_channels: int, dims: int, patch_size: int, multiple: int):
        super().__init__()
        self.multiple = multiple
        self.proj = nn.Conv2d(in_channels, dims, patch_size, patch_size)
        self.register_load_state_dict_pre_hook(fit_loaded)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, H', W', C)``."""
        return self.proj(pad_to_multiple(x, self.multiple)).permute(0, 2, 3, 1).contiguous()  # the memory of all that follows

    def fit_state_dict(self, state_dict: dict, prefix: str) -> None:
        """Resize, in place of the entry, kernels of other patches."""
        kernels = state_dict.get(f'{prefix}proj.weight')
        if isinstance(kernels, Tensor) and kernels.is_floating_point() and kernels.dim() == 4:
            state_dict[f'{prefix}proj.weight'] = resize(kernels, self.proj.weight.shape[2:])


class Attention(nn.Module):
    """Full self-attention of the tokens in a window."""

    def __init__(self, dims: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(windows, N, C)`` -> ``(windows, N, C)``."""
        query, key, value = self.qkv(x).chunk(3, -1)
        return self.proj(multi_head_attention(query, key, value, self.num_heads))


def cut(x: Tensor, parts: int, height: int, width: int) -> Tensor:
    """Tokens ``(B, height * width, C)`` -> ``(B * parts * parts, N, C)``, rectangles of height / parts by width / parts, row by
    row."""
    if parts == 1:
        return x
    if torch.compiler.is_compiling():  # rearranging dimensions, a trace would ask how their lengths compare
        rows, columns = height // parts, width // parts
        window, token = (torch.arange(number, device=x.device) for number in (parts * parts, rows * columns))
        (row, column), inside = divide(window, parts), divide(token, columns)
        row, column = (row * rows)[:, None] + inside[0], (column * columns)[:, None] + inside[1]
        return x[:, row * width + column].flatten(0, 1)
    x = x.view(-1, parts, height // parts, parts, width // parts, x.shape[2])
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def join(x: Tensor, parts: int, height: int, width: int) -> Tensor:
    """What ``cut`` gives -> tokens ``(B, height * width, C)``."""
    if parts == 1:
        return x
    rows, columns = height // parts, width // parts
    if torch.compiler.is_compiling():
        row, column = divide(torch.arange(height * width, device=x.device), width)
        (row, row_inside), (column, column_inside) = divide(row, rows), divide(column, columns)
        return x.unflatten(0, (-1, parts * parts))[:, row * parts + column, row_inside * columns + column_inside]
    return x.view(-1, parts, parts, rows, columns, x.shape[2]).transpose(2, 3).flatten(3, 4).flatten(1, 3)


@MODELS.register_module()
class UViT(PlainBackbone):
    """UViT: a plain vision transformer of stride 8, whose attention is in windows that are fractions of the map.

    The map is cut into s x s equal windows, which do not overlap and do not shift, with one s for each block. UViT has s = 2 in
    all blocks, so that nothing goes from one quarter of the map to another. UViT+ has s = 4 in fourteen blocks, 2 in two, and
    the whole map in the last two. Windows grow with the image, and with them what attention costs.

    Neither code nor weights of the paper were published. The outputs are those of a published encoder of the same blocks, in
    JAX, on images whose maps can be cut as they are. Images of other sizes are padded with zeros at the bottom and right until
    they can, which is not masked, and the maps are cropped. Positions are resized to the padded map.

    All maps have the stride 8; a neck makes a pyramid of them. The last block's map is normalised. Maps of other blocks, which
    the paper does not use, are as the blocks give them.

    Args:
        arch: ``t``, ``s``, ``b``, or ``t_plus``, ``s_plus``, ``b_plus`` for UViT+, which have the same parameters; or a dict of
            ``embed_dims``, ``depth``, ``num_heads``, ``mlp_ratio``, ``patch_size`` in pixels, ``grid``, height and width of the
            learned positions, in patches, and ``windows``, the s of each block. The paper trains on ImageNet with patches of 16
            pixels, a grid of (14, 14) and, it seems, the whole map in each block; such checkpoints are resized when loaded.
        in_channels: channels of the input image.
        out_indices: blocks, counted from 0; -1 for the last alone.
        drop_path_rate: drop path rate of the last block, which was not published. The rate grows linearly from 0 at the first.
            A window's branch is dropped as a whole.

    ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PlainBackbone``, as are the outputs and the errors.
    ``blocks`` take the tokens of windows, ``(B * s * s, N, C)``, and nothing else.

    Raises:
        ValueError: also for ``windows`` that are more or fewer than blocks.
    """

    arch_zoo = {
        name + plus: dict(embed_dims=embed_dims, depth=18, num_heads=6, mlp_ratio=4, patch_size=8, grid=(112, 112),
                          windows=windows)
        for plus, windows in (('', (2, ) * 18), ('_plus', (4, ) * 14 + (2, 2, 1, 1)))
        for name, embed_dims in (('t', 222), ('s', 288), ('b', 384))
    }
    arch_rules = {
        'grid': ('2 positive whole numbers', lambda value: is_numbers(value, 2)),
        'windows': ('positive whole numbers, one for each block',
                    lambda value: is_sequence(value) and bool(value) and all(map(is_positive, value))),
    }
    published = Published(
        url='https://github.com/google-research/google-research/tree/master/moe_mtl',
        licence='Apache-2.0',
        released=(),
        rename=(
            (r'^pos_embed$', 'pos_embed.table'),
            (r'\.mlp\.', '.ffn.'),
            (r'^norm\.', 'norms.17.'),  # all have eighteen blocks
        ),
        drop=r'^head\.',
    )

    def __init__(self,
                 arch: str | Mapping = 't',
                 in_channels: int = 3,
                 out_indices: int | Sequence[int] = -1,
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.1,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        if len(self.arch['windows']) != self.arch['depth']:
            raise ValueError(f'windows must be one for each of the {self.arch["depth"]} blocks (depth), '
                             f'got {len(self.arch["windows"])}: {self.arch["windows"]}')
        self.build_blocks()

    def describe_maps(self) -> Sequence[FeatureInfo]:
        """The map of each block."""
        return [FeatureInfo(self.arch['embed_dims'], self.arch['patch_size'])] * self.arch['depth']

    def build_patch_embed(self) -> PatchEmbedding:
        """Of whole windows in all blocks, without a norm."""
        patch_size = self.arch['patch_size']
        return PatchEmbedding(self.in_channels, self.arch['embed_dims'], patch_size, patch_size * lcm(*self.arch['windows']))

    def build_pos_embed(self) -> PositionTable:
        """Learned."""
        return PositionTable(self.arch['embed_dims'], self.arch['grid'])

    def build_block(self, index: int, drop_path_rate: float) -> Block:
        """Attention and FFN, whose GELU is the hyperbolic tangent's approximation, as in the published encoder."""
        dims, num_heads, mlp_ratio = (self.arch[key] for key in ('embed_dims', 'num_heads', 'mlp_ratio'))
        return Block(Attention(dims, num_heads), FFN(dims, dims * mlp_ratio, 'tanh'), dims, drop_path_rate, EPS)

    def norm_layer(self, index: int) -> partial | None:
        """A layer norm of the last block's map."""
        return partial(nn.LayerNorm, eps=EPS) if index == self.arch['depth'] - 1 else None

    def init_random_weights(self) -> None:
        """Draw the published encoder's initialisation: linear layers Xavier uniform, where query, key and value are layers of
        their own, the patches' LeCun normal, biases normal with a deviation of 1e-6 in the FFN and zero elsewhere; positions
        normal with one over the root of the channels."""
        super().init_random_weights()
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                for part in module.weight.chunk(3 if name.endswith('qkv') else 1):
                    nn.init.xavier_uniform_(part)
                if '.ffn.' in name:
                    nn.init.normal_(module.bias, std=1e-6)
        positions: Any = self.pos_embed
        nn.init.normal_(positions.table, std=self.arch['embed_dims']**-0.5)
        kernels: Any = self.patch_embed.proj
        deviation = sqrt(1 / kernels.weight[0].numel()) / 0.8796  # of a normal distribution that is cut at two of these
        nn.init.trunc_normal_(kernels.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        nn.init.zeros_(kernels.bias)

    def no_weight_decay(self) -> set[str]:
        """Also the positions."""
        return super().no_weight_decay() | {'pos_embed.table'}

    def forward_tokens(self, x: Tensor) -> tuple[list[Tensor], int, int]:
        """``(B, in_channels, H, W)`` -> for each of ``out_indices`` the tokens ``(B, N, C)`` after the norm, if there is one;
        and H' and W'."""
        size = [(length + self.arch['patch_size'] - 1) // self.arch['patch_size'] for length in x.shape[2:]]
        x = self.pos_embed(self.patch_embed(x))
        height, width = x.shape[1:3]
        x, parts, outs = x.flatten(1, 2), 1, []
        for index, block in enumerate(self.blocks):
            if self.arch['windows'][index] != parts:  # once for a run of blocks
                x = join(x, parts, height, width)
                parts = self.arch['windows'][index]
                x = cut(x, parts, height, width)
            x = run_block(block, self.with_cp, x)
            if index in self.out_indices:
                out = self.norms[str(index)](x) if str(index) in self.norms else x
                out = join(out, parts, height, width).unflatten(1, (height, width)).permute(0, 3, 1, 2)
                outs.append(crop(out, *size).permute(0, 2, 3, 1).flatten(1, 2))
        return outs, *size
