"""ConvNeXt with dynamic spatial sparsification (Rao et al., T-PAMI 2023, arXiv 2207.01580)."""
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import trunc_normal_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import FFN, ConvEmbed, LayerScale, draw_bias
from ..weights import Published
from .dynamic_sparsification import FastPath, SparseBlock, SparsePyramid

LAYER_SCALE = 1e-6


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
