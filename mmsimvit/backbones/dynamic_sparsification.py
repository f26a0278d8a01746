"""Pyramids that compute unimportant positions of stage 3 on a fast path: Dynamic Spatial Sparsification for Efficient Vision
Transformers and Convolutional Neural Networks (Rao et al., T-PAMI 2023, arXiv 2207.01580)."""
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import layers
from ..layers import DropPath, ImportancePredictor, LayerScale, Stage, check_ratios, count_kept
from .base import Layer, is_sequence
from .pyramid import PyramidBackbone

SPARSE_STAGE = 2
RATIO_STEP = 0.2  # by how much a predictor keeps less than the one before


class Routing(NamedTuple):
    """Which positions go which way."""
    order: Tensor  # (B, N), positions by falling score
    places: Tensor  # (B, N), where each position stands in the order
    kept: int  # how many of the order go the slow way


class FastPath(nn.Module):
    """What stands in the place of a feed-forward network: a norm and one linear layer."""

    def __init__(self, dims: int, eps: float, layer_scale: float | None):
        super().__init__()
        self.norm = nn.LayerNorm(dims, eps=eps)
        self.fc = nn.Linear(dims, dims)
        self.scale = nn.Identity() if layer_scale is None else LayerScale(dims, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        return self.scale(self.fc(self.norm(x)))


class SparseBlock(nn.Module):
    """A block whose second half takes two ways.

    A subclass has ``mix``, which all positions go through, and ``slow``. ``fast`` is None in blocks that have one way alone.

    Args:
        drop_path: rate of all branches.
        fast: takes ``(..., C)``, as ``slow`` does.
    """

    is_residual = False  # whether what is mixed is added to the input, and the ways' results to that

    def __init__(self, drop_path: float, fast: FastPath | None):
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.fast = fast

    def mix(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``, what the ways take."""
        raise NotImplementedError

    def slow(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``, the branch of important positions."""
        raise NotImplementedError

    def forward(self, x: Tensor, other: Tensor | None = None, mask: Tensor | None = None,
                routing: Routing | None = None) -> Any:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``.

        Args:
            x: the map; with ``mask``, that of the slow way, of which the positions count that go it.
            other: with ``mask``, that of the fast way.
            mask: ``(B, H, W, 1)``, 1 where the slow way is gone, in training; both ways then compute all positions, and both
                maps are returned.
            routing: which positions go which way, where each is computed once.
        """
        if mask is None or other is None:
            mixed = self.mix(x)
            x = mixed if self.is_residual else x
            return x + self.drop_path(self.slow(mixed) if routing is None else self.route(mixed, routing))
        mixed = self.mix(merge(x, other, mask))
        slow, fast = merge(mixed, x, mask), merge(other, mixed, mask)
        if self.is_residual:
            x = other = mixed
        return x + self.drop_path(self.slow(slow)), other + self.drop_path(self.take_fast(fast))

    def route(self, x: Tensor, routing: Routing) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``, each position by its way."""
        image = torch.arange(x.shape[0], device=x.device)[:, None]
        picked = x.flatten(1, 2)[image, routing.order]
        count = routing.order.shape[1]
        kept, rest = (picked.index_select(1, torch.arange(number, device=x.device) + first)
                      for first, number in ((0, routing.kept), (routing.kept, count - routing.kept)))
        computed = torch.cat([self.slow(kept), self.take_fast(rest)], 1)
        return computed[image, routing.places].unflatten(1, x.shape[1:3])

    def take_fast(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``, the branch of other positions."""
        assert self.fast is not None  # only blocks behind a predictor are asked
        return self.fast(x)


def merge(slow: Tensor, fast: Tensor, mask: Tensor) -> Tensor:
    """The maps of two ways, ``(B, H, W, C)``, and 1 where the first is taken, ``(B, H, W, 1)`` -> ``(B, H, W, C)``."""
    return slow * mask + fast * (1 - mask)


class SparseStage(layers.Stage):
    """A stage with predictors before some of its blocks.

    In training each decision is drawn, and both ways compute all positions, so that the decisions have gradients. In
    evaluation the positions of the highest scores are gathered and go the slow way, and the others the fast way.

    Args:
        predictors: by the numbers of the blocks before which they decide. Each decides anew, about all positions.
        patch_embed, blocks, with_cp: those of ``layers.Stage``.
    """

    predictors: Any  # an nn.ModuleList of ImportancePredictor, which torch's types cannot say

    def __init__(self, predictors: Mapping[int, ImportancePredictor], patch_embed: nn.Module, blocks: Sequence[nn.Module],
                 with_cp: bool):
        super().__init__(patch_embed, blocks, with_cp)
        self.places = tuple(predictors)
        self.predictors = nn.ModuleList(predictors.values())

    def forward(self, x: Tensor, keep_ratios: Sequence[float]) -> tuple[Tensor, tuple[Tensor, ...]]:  # type: ignore[override]
        """A map, and the decisions behind it.

        Args:
            x: ``(B, C_in, H, W)``.
            keep_ratios: in evaluation, what part of the positions each predictor keeps.

        Returns:
            ``(B, C, H', W')``, channels last in memory, and for each predictor ``(B, H' * W')``.
        """
        x = self.patch_embed(x)
        other, mask, routing = x, None, None
        decisions: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if index in self.places:
                number = len(decisions)
                whole = x if mask is None else merge(x, other, mask)
                predictor = self.predictors[number]
                log_probs = predictor(whole.flatten(1, 2))
                if self.training:
                    other = x if mask is None else other
                    decision = predictor.gate(log_probs)
                    mask = decision.to(x.dtype)[..., None].unflatten(1, x.shape[1:3])
                else:
                    routing = plan(log_probs[..., 0], keep_ratios[number])
                    decision = (routing.places < routing.kept).to(x.dtype)
                decisions.append(decision)
            if mask is None:
                x = self.run_block(block, x, None, None, routing)
            else:
                x, other = self.run_block(block, x, other, mask)
        x = x if mask is None else merge(x, other, mask)
        return x.permute(0, 3, 1, 2), tuple(decisions)


def plan(scores: Tensor, ratio: float) -> Routing:
    """Which positions are kept, by their scores ``(B, N)``."""
    order = scores.argsort(1, descending=True)
    return Routing(order, order.argsort(1), count_kept(scores.shape[1], ratio))


class SparsePyramid(PyramidBackbone):
    """What ``DynamicConvNeXt`` and ``DynamicSwin`` share.

    Args:
        keep_ratio: what part of the positions of stage 3 goes the slow way behind the first predictor; behind each further
            one it is 0.2 less, as published. Or a sequence with one part for each predictor.

    Attributes:
        keep_ratio: as given, which can be set anew at any time.
        keep_ratios: a tuple with one part for each predictor.

    Raises:
        ValueError: also for ratios that are not above 0 and up to 1, and for ``predictors`` that are no ascending numbers of
            blocks.
    """

    adds_norms = True
    eps: float  # of the norms of maps and predictors
    aliases: Mapping[str, str] = {}  # names of the published code
    arch_rules = {
        'map_norms': ('stages among 0, 1, 2, 3', lambda value: is_sequence(value) and all(i in range(4) for i in value)),
        'predictors': ('ascending numbers of blocks in stage 3, from 0',
                       lambda value: is_sequence(value) and all(isinstance(i, int) and i >= 0 for i in value)
                       and list(value) == sorted(set(value))),
    }

    def __init__(self, arch: str | Mapping, in_channels: int, out_indices: Sequence[int], frozen_stages: int,
                 drop_path_rate: float, with_cp: bool, init_cfg: dict | list[dict] | None,
                 keep_ratio: float | Sequence[float], **arch_overrides: Any):
        arch = self.aliases.get(arch, arch) if isinstance(arch, str) else arch
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        places, depth = self.arch['predictors'], self.arch['depths'][SPARSE_STAGE]
        if places and places[-1] >= depth:
            raise ValueError(f'predictors must stand before blocks of stage 3, which has {depth}, got {places}')
        self.keep_ratio = keep_ratio
        self.build_stages()

    @property
    def keep_ratio(self) -> float | Sequence[float]:
        """What part of the positions goes the slow way, as it was given."""
        return self._keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: float | Sequence[float]) -> None:
        """Set what ``keep_ratios`` follow."""
        count = len(self.arch['predictors'])
        each: Sequence = [value]
        if is_sequence(value):
            each = value
        elif isinstance(value, (int, float)):
            each = [value - RATIO_STEP * index for index in range(count)]
        self.keep_ratios = check_ratios(each, count)
        self._keep_ratio = value

    @property
    def predictors(self) -> Sequence[ImportancePredictor]:
        """The predictors, which there are if stage 3 is built."""
        return next((stage.predictors for stage in self.stages if isinstance(stage, SparseStage)), ())

    def layer_order(self) -> list[Layer]:
        """Predictors and fast paths too, which base models are without."""
        order, places = [], self.arch['predictors']
        for layer in super().layer_order():
            stage, _, block = str(layer.prefix).partition('.blocks.')
            is_sparse = bool(block) and layer.stage == SPARSE_STAGE + 1
            if is_sparse and int(block) in places:
                order.append(Layer(f'{stage}.predictors.{places.index(int(block))}', layer.stage, is_added=True))
            order.append(layer)
            if is_sparse and places and int(block) >= places[0]:
                order.append(Layer(f'{layer.prefix}.fast', layer.stage, is_added=True))
        return order

    def claim(self, names: Iterable[str]) -> list[str]:
        """As in ``Backbone``, but no norms of maps that are not normalised, for classifiers have one behind the mean of the
        map; nor, without predictors, what is behind these."""
        ours = self.state_dict().keys()
        others = re.compile(r'stages\.\d\.norm\.' if self.arch['predictors']
                            else r'stages\.\d\.(norm|predictors|blocks\.\d+\.fast)\.')
        return [name for name in super().claim(names) if name in ours or not others.match(name)]

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Predictors and fast paths in stage 3."""
        places: Sequence[int] = self.arch['predictors'] if index == SPARSE_STAGE else ()
        blocks = [self.build_block(index, number, rate, bool(places) and number >= places[0])
                  for number, rate in enumerate(drop_path_rates)]
        patch_embed = self.build_patch_embed(index, in_channels)
        if not places:
            return Stage(patch_embed, blocks, self.with_cp)
        predictors = {place: ImportancePredictor(self.arch['embed_dims'][index], self.eps) for place in places}
        return SparseStage(predictors, patch_embed, blocks, self.with_cp)

    def build_patch_embed(self, index: int, in_channels: int) -> nn.Module:
        """Make the patch embedding of a stage, which takes ``(B, in_channels, H, W)`` to ``(B, H', W', C)``."""
        raise NotImplementedError

    def build_block(self, index: int, number: int, drop_path_rate: float, has_fast: bool) -> SparseBlock:
        """Make a block of a stage; ``number`` is its own, from 0."""
        raise NotImplementedError

    def norm_layer(self, index: int) -> partial | None:
        """A layer norm of the maps that ``map_norms`` names."""
        return partial(nn.LayerNorm, eps=self.eps) if index in self.arch['map_norms'] else None

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)`` -> the contiguous maps of the stages in ``out_indices``."""
        return self._forward(x)[0]

    def forward_decisions(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What ``forward`` gives, and what the predictors decided.

        Args:
            x: ``(B, in_channels, H, W)``, any H, W >= 1.

        Returns:
            The maps of the stages in ``out_indices``; and of each predictor ``(B, N)``, 1 for positions of stage 3, row by row,
            that go the slow way, and 0 for others. In training they have gradients, straight through the decision. There are
            none if stage 3 is not built.
        """
        self.check_images(x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        outs: list[Tensor] = []
        decisions: tuple[Tensor, ...] = ()
        for index, stage in enumerate(self.stages):
            if isinstance(stage, SparseStage):
                x, decisions = stage(x, self.keep_ratios)
            else:
                x = stage(x)
            if index in self.out_indices:
                out = self.get_map(index, x).contiguous()
                outs.append(out.clone() if out is x else out)  # a head may change it in place, and the next stage keeps x
        return tuple(outs), decisions
