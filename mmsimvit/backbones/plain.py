"""Backbones of one resolution."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..layers import run_block
from .base import Backbone, FeatureInfo, Layer

OUT_TYPES = ('featmap', 'cls_token', 'raw')


class PlainBackbone(Backbone):
    """Blocks of one stride and one width, with maps from chosen blocks.

    A subclass has ``build_patch_embed``, ``build_pos_embed`` and ``build_block``, and ends its ``__init__`` with
    ``self.build_blocks()``. The values in an arch are one positive whole number each, unless ``arch_rules`` says otherwise;
    ``embed_dims``, the channels, ``depth``, the number of blocks, and ``num_heads`` are among them.

    The arguments are those of ``Backbone``, and ``out_type``.

    Args:
        out_indices: blocks, counted from 0, as in the vision transformers of MMPreTrain and MMSegmentation. Only the blocks up
            to the last one named are built.
        frozen_stages: 0 freezes the stem, which is the patch embedding, the position embedding and the class token; n >= 1
            also the first n blocks, with the norms of their maps.
        out_type: ``featmap`` for maps; ``cls_token`` for the class token ``(B, C)`` of each chosen block instead, which
            classifiers read, as in MMPreTrain; ``raw`` for all tokens ``(B, N, C)``, the class token first. ``strides`` are
            those of the maps in all cases.

    Attributes:
        blocks: the blocks, which take ``(B, N, C)`` with N = H' W' tokens, one more at the front if there is a class token,
            and the numbers H' and W'.
        norms: norms of chosen maps, by the numbers of their blocks.

    Raises:
        ValueError: also for another ``out_type``, for ``cls_token`` and ``raw`` without a class token, and for ``embed_dims``
            that are no multiple of ``num_heads``.
    """

    patch_size = 16  # the stride of all maps
    has_cls_token = False
    adds_norms = False  # whether norms but the last block's are dense prediction's own, so that classifiers have none
    blocks: Any  # an nn.ModuleList and an nn.ModuleDict, whose entries torch's types cannot say
    norms: Any
    cls_token: nn.Parameter | None

    def __init__(self, arch: str | Mapping, in_channels: int, out_indices: int | Sequence[int], frozen_stages: int,
                 drop_path_rate: float, with_cp: bool, init_cfg: dict | list[dict] | None, out_type: str = 'featmap',
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        known = OUT_TYPES if self.holds_cls_token() else OUT_TYPES[:1]
        if out_type not in known:
            raise ValueError(f'out_type of {type(self).__name__} must be {" or ".join(known)}, got {out_type!r}')
        dims, heads = self.arch['embed_dims'], self.arch['num_heads']
        if dims % heads:
            raise ValueError(f'embed_dims must be a multiple of its num_heads, got {dims} and {heads}')
        self.out_type = out_type

    def describe_maps(self) -> Sequence[FeatureInfo]:
        """The map of each block."""
        return [FeatureInfo(self.arch['embed_dims'], self.patch_size)] * self.arch['depth']

    def layer_order(self) -> list[Layer]:
        """The stem; each block, and the norm of its map."""
        order = [Layer(('cls_token', ) * self.holds_cls_token() + ('patch_embed', 'pos_embed'), 0)]
        for index in range(self.arch['depth']):
            order.append(Layer(f'blocks.{index}', index + 1, is_block=True))
            if self.norm_layer(index):
                is_added = self.adds_norms and index < self.arch['depth'] - 1
                order.append(Layer(f'norms.{index}', index + 1, is_added=is_added))
        return order

    def holds_cls_token(self) -> bool:
        """Whether there is a class token, by ``self.arch`` alone; here ``has_cls_token`` of the class."""
        return self.has_cls_token

    def build_patch_embed(self) -> nn.Module:
        """Make what takes ``(B, in_channels, H, W)`` to ``(B, H', W', C)``."""
        raise NotImplementedError

    def build_pos_embed(self) -> nn.Module:
        """Make what takes ``(B, H', W', C)`` to the same with positions, out of a table or a generator."""
        raise NotImplementedError

    def build_block(self, index: int, drop_path_rate: float) -> nn.Module:
        """Make a block, which takes tokens ``(B, N, C)``, H' and W' to ``(B, N, C)``."""
        raise NotImplementedError

    def norm_layer(self, index: int) -> Callable[[int], nn.Module] | None:
        """What makes the norm of a block's map from its channels, by ``self.arch`` alone; None for no norm, as here."""
        return None

    def build_blocks(self) -> None:
        """Make the stem, the blocks that ``out_indices`` needs and the norms of their maps, and freeze those that are to be."""
        dims = self.arch['embed_dims']
        # Over all blocks, built or not, so that a backbone cut short is the beginning of the whole one.
        rates = np.linspace(0, self.drop_path_rate, self.arch['depth']).tolist()
        self.cls_token = nn.Parameter(torch.empty(1, 1, dims)) if self.holds_cls_token() else None
        self.patch_embed = self.build_patch_embed()
        self.pos_embed = self.build_pos_embed()
        self.blocks = nn.ModuleList(self.build_block(index, rates[index]) for index in range(self.out_indices[-1] + 1))
        self.norms = nn.ModuleDict()
        for index in self.out_indices:
            norm_layer = self.norm_layer(index)
            if norm_layer:
                self.norms[str(index)] = norm_layer(dims)
        self.reset_parameters()
        self.freeze()

    def reset_parameters(self) -> None:
        """Draw the class token from a normal distribution with a deviation of 0.02, cut at 2."""
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)``, any H, W >= 1 -> for each of ``out_indices`` the contiguous ``(B, C, H', W')``, H' =
        ceil(H / stride), W' = ceil(W / stride); with another ``out_type`` the class token ``(B, C)`` or all tokens."""
        return super().forward(x)

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)`` -> what ``forward`` gives."""
        tokens, height, width = self.forward_tokens(x)
        if self.out_type == 'raw':
            return tuple(tokens)
        if self.out_type == 'cls_token':
            return tuple(out[:, 0] for out in tokens)
        return tuple(self.to_map(out, height, width) for out in tokens)

    def forward_tokens(self, x: Tensor) -> tuple[list[Tensor], int, int]:
        """``(B, in_channels, H, W)`` -> for each of ``out_indices`` the tokens ``(B, N, C)`` after the norm, if there is one;
        and H' and W'."""
        x = self.pos_embed(self.patch_embed(x))
        height, width = x.shape[1:3]
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        outs = []
        for index, block in enumerate(self.blocks):
            x = run_block(block, self.with_cp, x, height, width)
            if index in self.out_indices:
                outs.append(self.norms[str(index)](x) if str(index) in self.norms else x)
        return outs, height, width

    def to_map(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """``(B, N, C)`` -> the contiguous ``(B, C, H', W')``, without the class token."""
        if self.cls_token is not None:
            tokens = tokens[:, 1:]
        return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous()
