"""Swin with dynamic spatial sparsification (Rao et al., T-PAMI 2023, arXiv 2207.01580)."""
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import FFN, PatchEmbed, PatchMerging, WindowAttention
from ..weights import Published
from .base import is_positive
from .dynamic_sparsification import FastPath, SparseBlock, SparsePyramid


class SwinBlock(SparseBlock):
    """Attention in windows and feed-forward network, each normalised before and added to its input (Swin, 2103.14030)."""

    is_residual = True

    def __init__(self, attn: WindowAttention, dims: int, mlp_ratio: int, drop_path: float, has_fast: bool):
        super().__init__(drop_path, FastPath(dims, 1e-5, None) if has_fast else None)
        self.norm1 = nn.LayerNorm(dims, eps=1e-5)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dims, eps=1e-5)
        self.ffn = FFN(dims, dims * mlp_ratio, recompute=has_fast)  # where two ways are kept for the gradients

    def mix(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        return x + self.drop_path(self.attn(self.norm1(x)))

    def slow(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        return self.ffn(self.norm2(x))


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
