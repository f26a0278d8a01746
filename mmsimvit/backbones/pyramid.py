"""Backbones of several resolutions."""
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, islice
from operator import mul
from typing import Any

import numpy as np
from torch import Tensor, nn

from .base import Backbone, FeatureInfo, Layer, is_numbers


class PyramidBackbone(Backbone):
    """Stages of falling resolution, each of which takes the map of the one before and has a map of its own.

    A subclass has ``build_stage``, and ends its ``__init__`` with ``self.build_stages()``. The values in an arch are one
    positive whole number for each stage, unless ``arch_rules`` says otherwise; ``embed_dims``, the channels of the maps, and
    ``depths``, the numbers of blocks, are among them.

    The arguments are those of ``Backbone``, of which ``out_indices`` names stages, and the stem that ``frozen_stages=0``
    freezes is the first patch embedding.

    Attributes:
        stage_strides: a tuple, one entry for each stage, built or not.
        num_built: how many stages are built; later ones than the last of ``out_indices`` are not.
        stages: the stages, which have ``patch_embed``, ``blocks`` and ``norm``, the norm of the map.

    Raises:
        ValueError: also for ``embed_dims`` that are no multiples of ``num_heads``.
    """

    patch_sizes: Sequence[int] = (4, 2, 2, 2)  # by how much each stage divides height and width; as many as there are stages
    carries_norms = False  # whether the next stage takes a map after its norm, or before
    adds_norms = False  # whether the norms are dense prediction's own, so that classifiers have none
    stages: Any  # an nn.ModuleList of Stage, which torch's types cannot say

    def __init__(self, arch: str | Mapping, in_channels: int, out_indices: Sequence[int], frozen_stages: int,
                 drop_path_rate: float, with_cp: bool, init_cfg: dict | list[dict] | None, **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        for dims, heads in zip(self.arch['embed_dims'], self.arch.get('num_heads', (1, ) * len(self.patch_sizes))):
            if dims % heads:
                raise ValueError(f'each of embed_dims must be a multiple of its num_heads, got {dims} and {heads}')
        self.num_built = self.out_indices[-1] + 1
        self.stage_strides = tuple(info.stride for info in self.describe_maps())

    def get_arch_rule(self, key: str) -> tuple[str, Callable[[object], bool]]:
        """One positive whole number for each stage, unless ``arch_rules`` has the key."""
        count = len(self.patch_sizes)
        return self.arch_rules.get(key, (f'{count} positive whole numbers, one for each stage',
                                         lambda value: is_numbers(value, count)))

    def describe_maps(self) -> Sequence[FeatureInfo]:
        """The map of each stage."""
        return [FeatureInfo(*info) for info in zip(self.arch['embed_dims'], accumulate(self.patch_sizes, mul))]

    def layer_order(self) -> list[Layer]:
        """The first patch embedding; of each stage what it has before its blocks, the blocks, the norm."""
        order = [Layer('stages.0.patch_embed', 0)]
        for index, depth in enumerate(self.arch['depths']):
            order.append(Layer(f'stages.{index}', index + 1))  # what is neither block nor norm
            order += [Layer(f'stages.{index}.blocks.{block}', index + 1, is_block=True) for block in range(depth)]
            if self.norm_layer(index):
                order.append(Layer(f'stages.{index}.norm', index + 1, is_added=self.adds_norms))
        return order

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> nn.Module:
        """Make a stage without the norm of its map.

        Args:
            index: which, from 0.
            in_channels: channels of the map that it takes.
            drop_path_rates: one for each block.

        Returns:
            A module that takes ``(B, in_channels, H, W)`` to the stage's ``(B, C, H', W')``.
        """
        raise NotImplementedError

    def norm_layer(self, index: int) -> Callable[[int], nn.Module] | None:
        """What makes the norm of a stage's map from its channels, by ``self.arch`` alone; None for no norm, as here."""
        return None

    def get_drop_path_rates(self) -> list[list[float]]:
        """Those of the blocks of each stage, here linear from 0 to ``drop_path_rate`` over all stages.

        Over all, built or not, so that a backbone cut short is the beginning of the whole one.
        """
        rates = iter(np.linspace(0, self.drop_path_rate, sum(self.arch['depths'])).tolist())
        return [list(islice(rates, depth)) for depth in self.arch['depths']]

    def build_stages(self) -> None:
        """Make the stages that ``out_indices`` needs, with the norms of their maps, and freeze those that are to be."""
        rates, channels = self.get_drop_path_rates(), [info.channels for info in self.describe_maps()]
        self.stages = nn.ModuleList()
        for index in range(self.num_built):
            stage: Any = self.build_stage(index, channels[index - 1] if index else self.in_channels, rates[index])
            norm_layer = self.norm_layer(index) if self.carries_norms or index in self.out_indices else None
            stage.norm = norm_layer(channels[index]) if norm_layer else None
            self.stages.append(stage)
        self.freeze()

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, C, H, W)``, which the first stage takes -> the contiguous maps of the stages in ``out_indices``."""
        outs = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            out = self.get_map(index, x)
            if self.carries_norms:
                x = out
            if index in self.out_indices:
                out = out.contiguous()
                outs.append(out.clone() if out is x else out)  # a head may change it in place, and the next stage keeps x
        return tuple(outs)

    def get_map(self, index: int, x: Tensor) -> Tensor:
        """The map of a stage from what the stage computes, ``(B, C, H', W')`` both."""
        norm = self.stages[index].norm
        if isinstance(norm, nn.LayerNorm):
            return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x if norm is None else norm(x)
