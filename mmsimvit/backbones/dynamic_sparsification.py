"""ConvNeXt and Swin that compute unimportant positions of stage 3 on a fast path: Dynamic Spatial Sparsification for Efficient
Vision Transformers and Convolutional Neural Networks (Rao et al., T-PAMI 2023, arXiv 2207.01580)."""
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import trunc_normal_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import layers
from ..layers import (
    FFN,
    ConvEmbed,
    DropPath,
    ImportancePredictor,
    LayerScale,
    PatchEmbed,
    PatchMerging,
    Stage,
    WindowAttention,
    check_ratios,
    count_kept,
    draw_bias,
)
from ..weights import Published
from .base import Layer, is_positive, is_sequence
from .pyramid import PyramidBackbone

SPARSE_STAGE = 2
RATIO_STEP = 0.2  # by how much a predictor keeps less than the one before
LAYER_SCALE = 1e-6


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


class ConvNeXtBlock(SparseBlock):
    """Depth-wise 7 x 7 convolution and feed-forward network in one residual branch (ConvNeXt, 2201.03545)."""

    def __init__(self, dims: int, mlp_ratio: int, drop_path: float, has_fast: bool):
        super().__init__(drop_path, FastPath(dims, 1e-6, LAYER_SCALE) if has_fast else None)
        self.dwconv = nn.Conv2d(dims, dims, 7, padding=3, groups=dims)
        self.norm = nn.LayerNorm(dims, eps=1e-6)
        self.ffn = FFN(dims, dims * mlp_ratio)
        self.scale = LayerScale(dims, LAYER_SCALE)

    def mix(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def slow(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        return self.scale(self.ffn(self.norm(x)))


class SwinBlock(SparseBlock):
    """Attention in windows and feed-forward network, each normalised before and added to its input (Swin, 2103.14030)."""

    is_residual = True

    def __init__(self, attn: WindowAttention, dims: int, mlp_ratio: int, drop_path: float, has_fast: bool):
        super().__init__(drop_path, FastPath(dims, 1e-5, None) if has_fast else None)
        self.norm1 = nn.LayerNorm(dims, eps=1e-5)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dims, eps=1e-5)
        self.ffn = FFN(dims, dims * mlp_ratio)

    def mix(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        return x + self.drop_path(self.attn(self.norm1(x)))

    def slow(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        return self.ffn(self.norm2(x))


class SparseStage(layers.Stage):
    """A stage with predictors before some of its blocks.

    In training each decision is drawn, and both ways compute all positions, so that the decisions have gradients. In
    evaluation the positions of the highest scores are gathered and go the slow way, and the others the fast way.

    Args:
        predictors: by the numbers of the blocks before which they decide. Each decides anew, about all positions.
        patch_embed, blocks, with_cp: those of ``layers.Stage``.
    """

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
        other, mask, routing, decisions = x, None, None, []
        for index, block in enumerate(self.blocks):
            if index in self.places:
                number = len(decisions)
                whole = x if mask is None else merge(x, other, mask)
                log_probs = self.predictors[number](whole.flatten(1, 2))
                if self.training:
                    other = x if mask is None else other
                    decision = self.predictors[number].gate(log_probs)
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
        count = len(self.arch['predictors'])
        each = value if is_sequence(value) else [value - RATIO_STEP * index if isinstance(value, Real) else value
                                                 for index in range(count)]
        self.keep_ratios = check_ratios(each, count)
        self._keep_ratio = value

    @property
    def predictors(self) -> Sequence[ImportancePredictor]:
        """The predictors, which there are if stage 3 is built."""
        return self.stages[SPARSE_STAGE].predictors if self.num_built > SPARSE_STAGE else ()

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
        """As in ``Backbone``, but no norms of maps that are not normalised, for classifiers have one behind the mean of the map;
        nor, without predictors, what is behind these."""
        ours = self.state_dict().keys()
        others = re.compile(r'stages\.\d\.norm\.' if self.arch['predictors']
                            else r'stages\.\d\.(norm|predictors|blocks\.\d+\.fast)\.')
        return [name for name in super().claim(names) if name in ours or not others.match(name)]

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Predictors and fast paths in stage 3."""
        places = self.arch['predictors'] if index == SPARSE_STAGE else ()
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
        outs, decisions = [], ()
        for index, stage in enumerate(self.stages):
            if isinstance(stage, SparseStage):
                x, decisions = stage(x, self.keep_ratios)
            else:
                x = stage(x)
            if index in self.out_indices:
                out = self.get_map(index, x).contiguous()
                outs.append(out.clone() if out is x else out)  # a head may change it in place, and the next stage keeps x
        return tuple(outs), decisions


class Downsample(nn.Module):
    """Half the resolution: norm and non-overlapping patches, the last row or column left out if their number is odd."""

    def __init__(self, in_channels: int, embed_dims: int):
        super().__init__()
        self.norm = nn.LayerNorm(in_channels, eps=1e-6)
        self.proj = nn.Conv2d(in_channels, embed_dims, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, max(floor(H / 2), 1), max(floor(W / 2), 1), C)``."""
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        height, width = x.shape[2:]
        if height < 2 or width < 2:
            x = F.pad(x, (0, max(2 - width, 0), 0, max(2 - height, 0)))
        return self.proj(x).permute(0, 2, 3, 1)


def as_linear(converted: dict[str, Tensor]) -> None:
    """Take convolutions of single pixels for the linear layers that they are, in place."""
    for name, tensor in converted.items():
        if tensor.dim() == 4 and tensor.shape[2:] == (1, 1) and 'dwconv' not in name:
            converted[name] = tensor.flatten(1)


@MODELS.register_module()
class DynamicConvNeXt(SparsePyramid):
    """ConvNeXt with dynamic spatial sparsification: in stage 3, predictors choose the positions that go through feed-forward
    networks; the others go through one linear layer each.

    The outputs are the published code's on images of any size that it takes, whose remainders are dropped: maps have
    ``floor(H / stride)`` rows. Where that would be none, images and maps get zeros at the bottom and right. Code for
    dense prediction was not published: the maps have norms as in dense prediction with ConvNeXt.

    Args:
        arch: ``tiny``, ``small`` or ``base``, or a dict of ``embed_dims``, ``depths`` and ``mlp_ratios``, each with one number
            for every stage; ``predictors``, the numbers, from 0, of the blocks of stage 3 before which they stand, none for
            ConvNeXt itself; and ``map_norms``, the stages, from 0, whose maps are normalised: the published classifier has the
            norm of stage 3, of the mean of the map.
        in_channels: channels of the input image.
        drop_path_rate: as published 0.2 for ``tiny`` and ``small``, 0.5 for ``base``.
        keep_ratio: what part of the positions of stage 3 goes the slow way behind the first predictor, in evaluation; behind
            each further one it is 0.2 less. Or a sequence with one part for each predictor. Published 0.7 and 0.9.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the outputs and
    the errors. A ``Pretrained`` checkpoint may also be one of ConvNeXt, whose predictors and fast paths start anew.

    Attributes:
        keep_ratio: as given, which can be set anew at any time.
        keep_ratios: a tuple with one part for each predictor.

    Raises:
        ValueError: also for ratios that are not above 0 and up to 1, and for ``predictors`` that are no ascending numbers of
            blocks.
    """

    eps = 1e-6
    min_traced_size = 64  # remainders are dropped
    aliases = {'convnext_t': 'tiny', 'convnext_s': 'small', 'convnext_b': 'base'}
    arch_zoo = {
        name: dict(embed_dims=(dims, 2 * dims, 4 * dims, 8 * dims), depths=(3, 3, depth, 3), mlp_ratios=(4, 4, 4, 4),
                   predictors=predictors, map_norms=(0, 1, 2, 3))
        for name, dims, depth, predictors in (('tiny', 96, 9, (1, 2, 3)), ('small', 96, 27, (3, 6, 9)),
                                              ('base', 128, 27, (3, 6, 9)))
    }
    published = Published(
        url='https://github.com/raoyongming/DynamicViT',
        licence='MIT',
        released=('tiny', 'small', 'base'),
        rename=(
            (r'^downsample_layers\.0\.0\.', 'stages.0.patch_embed.proj.'),
            (r'^downsample_layers\.0\.1\.', 'stages.0.patch_embed.norm.'),
            (r'^downsample_layers\.([1-3])\.0\.', r'stages.\1.patch_embed.norm.'),
            (r'^downsample_layers\.([1-3])\.1\.', r'stages.\1.patch_embed.proj.'),
            (r'^stages\.(\d)\.(\d+)\.', r'stages.\1.blocks.\2.'),
            (r'\.depthwise_conv\.', '.dwconv.'),  # as ConvNeXt's parameters are called in MMPreTrain
            (r'\.(?:pwconv|pointwise_conv)([12])\.', r'.ffn.fc\1.'),
            (r'\.gamma$', '.scale.gamma'),
            (r'\.fast_path_gamma$', '.fast.scale.gamma'),
            (r'\.fast_path\.0\.', '.fast.norm.'),
            (r'\.fast_path\.1\.', '.fast.fc.'),
            (r'^score_predictor\.', 'stages.2.predictors.'),
            (r'^norm([0-3])\.', r'stages.\1.norm.'),
            (r'^norm\.', 'stages.3.norm.'),
        ),
        drop=r'^head\.',
        finish=as_linear,
    )

    def __init__(self,
                 arch: str | Mapping = 'tiny',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.2,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 keep_ratio: float | Sequence[float] = 0.7,
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, keep_ratio,
                         **arch_overrides)

    def build_patch_embed(self, index: int, in_channels: int) -> nn.Module:
        """Convolutions without overlap; the norm is behind the first one and before the others."""
        dims = self.arch['embed_dims'][index]
        return Downsample(in_channels, dims) if index else ConvEmbed(in_channels, dims, 4, 4, 0, 1e-6)

    def build_block(self, index: int, number: int, drop_path_rate: float, has_fast: bool) -> ConvNeXtBlock:
        """ConvNeXt's."""
        return ConvNeXtBlock(self.arch['embed_dims'][index], self.arch['mlp_ratios'][index], drop_path_rate, has_fast)

    def init_random_weights(self) -> None:
        """Draw the published initialisation: layers and convolutions from a normal distribution with a deviation of 0.02,
        cut at 2, and biases of zero, but the first one's."""
        super().init_random_weights()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                trunc_normal_init(module, std=0.02)
        draw_bias(self.stages[0].patch_embed.proj)


def fold_by_channel(converted: dict[str, Tensor]) -> None:
    """Sort, in place, the inputs of patch mergings in OpenMMLab's Swin, which have the four pixels of each channel together,
    as ours, which have the channels of each pixel together."""
    for name in [name for name in converted if '.by_channel.' in name]:
        tensor = converted.pop(name)
        # Pixels row by row there, column by column here.
        tensor = tensor.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)
        converted[name.replace('.by_channel.', '.')] = tensor


@MODELS.register_module()
class DynamicSwin(SparsePyramid):
    """Swin with dynamic spatial sparsification: in stage 3, predictors choose the positions that go through the feed-forward
    networks; the others go through one linear layer each. Attention is in windows of the whole map.

    The outputs are the published code's on images of 224 x 224 pixels, which it is for. Other sizes are as in Swin for dense
    prediction: images, maps before attention and before merging are padded with zeros at the bottom and right, but maps that
    are not larger than a window are not shifted. Positions are counted without padding. Code for dense prediction was not
    published: the maps have norms as in dense prediction with Swin.

    Args:
        arch: ``tiny``, ``small`` or ``base``, or a dict of ``embed_dims``, ``depths``, ``num_heads`` and ``mlp_ratios``, each
            with one number for every stage; ``window_size``, in pixels of the maps of all stages; ``predictors``, the numbers,
            from 0, of the blocks of stage 3 before which they stand, none for Swin itself; and ``map_norms``, the stages, from
            0, whose maps are normalised: the published classifier has the norm of stage 3.
        in_channels: channels of the input image.
        drop_path_rate: as published 0.2 for ``tiny`` and ``small``, 0.5 for ``base``.
        keep_ratio: what part of the positions of stage 3 goes the slow way behind the first predictor, in evaluation; behind
            each further one it is 0.2 less. Or a sequence with one part for each predictor. Published 0.7.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the outputs and
    the errors. A ``Pretrained`` checkpoint may also be one of Swin, whose predictors and fast paths start anew.

    Attributes:
        keep_ratio: as given, which can be set anew at any time.
        keep_ratios: a tuple with one part for each predictor.

    Raises:
        ValueError: also for ratios that are not above 0 and up to 1, and for ``predictors`` that are no ascending numbers of
            blocks.
    """

    eps = 1e-5
    aliases = {'swin_t': 'tiny', 'swin_s': 'small', 'swin_b': 'base'}
    arch_zoo = {
        name: dict(embed_dims=(dims, 2 * dims, 4 * dims, 8 * dims), depths=(2, 2, depth, 2),
                   num_heads=(dims // 32, dims // 16, dims // 8, dims // 4), mlp_ratios=(4, 4, 4, 4), window_size=7,
                   predictors=predictors, map_norms=(0, 1, 2, 3))
        for name, dims, depth, predictors in (('tiny', 96, 6, (1, 2, 3)), ('small', 96, 18, (2, 4, 6)),
                                              ('base', 128, 18, (2, 4, 6)))
    }
    arch_rules = {**SparsePyramid.arch_rules, 'window_size': ('a positive whole number', is_positive)}
    published = Published(
        url='https://github.com/raoyongming/DynamicViT',
        licence='MIT',
        released=('tiny', 'small', 'base'),
        rename=(
            (r'^patch_embed\.proj(?:ection)?\.', 'stages.0.patch_embed.proj.'),  # second, as Swin's are called in MMPreTrain
            (r'^patch_embed\.norm\.', 'stages.0.patch_embed.norm.'),
            (r'^layers\.(\d)\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.'),
            (r'^stages\.(\d)\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.by_channel.'),
            (r'^layers\.(\d)\.score_predictor\.', r'stages.\1.predictors.'),
            (r'^layers\.', 'stages.'),
            (r'^norm([0-3])\.', r'stages.\1.norm.'),
            (r'^norm\.', 'stages.3.norm.'),
            (r'\.attn\.w_msa\.', '.attn.'),
            (r'\.relative_position_bias_table$', '.position_bias.table'),
            (r'\.fastmlp\.fc1\.0\.', '.fast.norm.'),
            (r'\.fastmlp\.fc1\.1\.', '.fast.fc.'),
            (r'\.mlp\.', '.ffn.'),
            (r'\.ffn\.layers\.0\.0\.', '.ffn.fc1.'),
            (r'\.ffn\.layers\.1\.', '.ffn.fc2.'),
        ),
        drop=r'^head\.|\.relative_position_index$|\.attn_mask$',
        finish=fold_by_channel,
    )

    def __init__(self,
                 arch: str | Mapping = 'tiny',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.2,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 keep_ratio: float | Sequence[float] = 0.7,
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, keep_ratio,
                         **arch_overrides)

    def build_patch_embed(self, index: int, in_channels: int) -> nn.Module:
        """Patches, then mergings of four pixels."""
        dims = self.arch['embed_dims'][index]
        return PatchMerging(in_channels, dims) if index else PatchEmbed(in_channels, dims, 4)

    def build_block(self, index: int, number: int, drop_path_rate: float, has_fast: bool) -> SwinBlock:
        """Swin's; every second one is shifted."""
        dims, num_heads, mlp_ratio = (self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios'))
        size = self.arch['window_size']
        attn = WindowAttention(dims, num_heads, size, size // 2 if number % 2 else 0, shifts_small=False)
        return SwinBlock(attn, dims, mlp_ratio, drop_path_rate, has_fast)
