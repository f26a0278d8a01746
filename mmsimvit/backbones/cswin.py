"""CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows (Dong et al., CVPR 2022,
arXiv 2107.00652)."""
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from ..layers import FFN, Block, ConvEmbed, CrossShapedAttention, Stage
from ..weights import Published, stage_before
from .base import is_numbers
from .pyramid import PyramidBackbone

EPS = 1e-5


@MODELS.register_module()
class CSWin(PyramidBackbone):
    """CSWin: attention in cross-shaped windows in stages 1 to 3, over the whole map in stage 4.

    The outputs are the published segmentation code's on images of any size that it takes. Its first map is rounded down: it
    has ``floor((H - 3) / 4) + 1`` rows, and the others half of the one before, rounded up. Images below 3 pixels, which it
    does not take, are padded with zeros at the bottom and right.

    Args:
        arch: ``tiny``, ``small``, ``base`` or ``large``, or a dict of ``embed_dims``, ``depths``, ``num_heads`` and
            ``mlp_ratios``, each with one number for every stage, and ``stripe_widths``, those of stages 1 to 3 in pixels of
            their maps: (1, 2, 7), but (1, 2, 12) in classifiers that were published for 384 x 384 pixels.
        in_channels: channels of the input image.
        drop_path_rate: as published for ``tiny``, ``small``, ``base``, ``large``: for ImageNet 0.2, 0.4, 0.5, 0.2 (after
            ImageNet-22K), in segmentors 0.3, 0.4, 0.6.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the outputs
    and the errors.
    Each returned map has a norm of its own: name in ``out_indices`` the maps that are used and no others (with
    ``FPN(start_level=1)``, stages 1 to 3), or distributed training stops at parameters without gradient.

    Raises:
        ValueError: also for odd ``num_heads`` in stages 1 to 3.
    """

    adds_norms = True
    arch_zoo = {
        name: dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads, mlp_ratios=(4, 4, 4, 4), stripe_widths=(1, 2, 7))
        for name, embed_dims, depths, num_heads in (
            ('tiny', (64, 128, 256, 512), (1, 2, 21, 1), (2, 4, 8, 16)),
            ('small', (64, 128, 256, 512), (2, 4, 32, 2), (2, 4, 8, 16)),
            ('base', (96, 192, 384, 768), (2, 4, 32, 2), (4, 8, 16, 32)),
            ('large', (144, 288, 576, 576), (2, 4, 32, 2), (6, 12, 24, 24)),  # widths grow as the heads do
        )
    }
    arch_rules = {'stripe_widths': ('3 positive whole numbers, one for each stage but the last',
                                    lambda value: is_numbers(value, 3))}
    published = Published(
        url='https://github.com/microsoft/CSWin-Transformer',
        licence='MIT',
        released=('tiny', 'small', 'base', 'large'),
        rename=(
            (r'^stage1_conv_embed\.0\.', 'stages.0.patch_embed.proj.'),
            (r'^stage1_conv_embed\.2\.', 'stages.0.patch_embed.norm.'),
            (r'^merge([1-3])\.conv\.', r'stages.\1.patch_embed.proj.'),
            (r'^merge([1-3])\.norm\.', r'stages.\1.patch_embed.norm.'),
            (r'^stage([1-4])\.', lambda m: f'stages.{int(m[1]) - 1}.blocks.'),
            (r'^(norm)([1-4])\.', stage_before),
            (r'^norm\.', 'stages.3.norm.'),  # of classifiers: in its place, where published segmentors have a new one
            (r'(\.blocks\.\d+)\.(qkv|proj)\.', r'\1.attn.\2.'),
            (r'\.attns\.([01])\.get_v\.', r'.attn.lepe.\1.'),
            (r'\.mlp\.', '.ffn.'),
        ),
        drop=r'^head\.',
        classifiers=('tiny', 'small', 'base', 'large'),
    )

    def __init__(self,
                 arch: str | Mapping = 'tiny',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.2,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        if any(heads % 2 for heads in self.arch['num_heads'][:3]):
            raise ValueError('num_heads of stages 1 to 3 must be even, one half for the vertical stripes and one for the '
                             f'horizontal ones, got {self.arch["num_heads"]}')
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Stripes in all stages but the last."""
        dims, num_heads, mlp_ratio = (self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios'))
        patch_embed = ConvEmbed(in_channels, dims, 3, 2, 1) if index else ConvEmbed(in_channels, dims, 7, 4, 2)
        stripe_width = (*self.arch['stripe_widths'], None)[index]
        blocks = [Block(CrossShapedAttention(dims, num_heads, stripe_width), FFN(dims, dims * mlp_ratio), dims, rate, EPS)
                  for rate in drop_path_rates]
        return Stage(patch_embed, blocks, self.with_cp)

    def norm_layer(self, index: int) -> partial:
        """A layer norm of every map."""
        return partial(nn.LayerNorm, eps=EPS)
