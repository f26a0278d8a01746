"""SimViT: Exploring a Simple Vision Transformer with Sliding Windows (Li et al., ICME 2022, arXiv 2112.13085)."""
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import Block, ConvFFN, PatchEmbed, Stage, draw_bias, init_as_pvt, multi_head_attention
from ..ops import central_attention
from ..weights import Published, stage_before
from .base import is_positive, is_rate
from .pyramid import PyramidBackbone

EPS = 1e-6  # of the norms of blocks and outputs; those of patch embeddings have 1e-5


class CentralAttention(nn.Module):
    """Multi-head central self-attention (MCSA): each pixel attends to the window around it."""

    def __init__(self, dims: int, num_heads: int, kernel_size: int, attn_drop_rate: float):
        super().__init__()
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.attn_drop_rate = attn_drop_rate
        self.q = nn.Linear(dims, dims)
        self.kv = nn.Linear(dims, 2 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        dropout_p = self.attn_drop_rate if self.training else 0.0
        x = central_attention(self.q(x), self.kv(x), None, self.num_heads, self.kernel_size, dropout_p=dropout_p)
        return self.proj(x)


class Attention(nn.Module):
    """Multi-head self-attention of every pixel to every pixel."""

    def __init__(self, dims: int, num_heads: int, attn_drop_rate: float):
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.q = nn.Linear(dims, dims)
        self.kv = nn.Linear(dims, 2 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        query, key, value = (y.flatten(1, 2) for y in (self.q(x), *self.kv(x).chunk(2, -1)))
        dropout_p = self.attn_drop_rate if self.training else 0.0
        return self.proj(multi_head_attention(query, key, value, self.num_heads, dropout_p=dropout_p).view_as(x))


@MODELS.register_module()
class SimViT(PyramidBackbone):
    """SimViT: central self-attention in stages 1 to 3, full self-attention in stage 4, no positional encoding.

    On heights and widths that are multiples of 32 the outputs are the published model's. Other sizes are padded with
    zeros at the bottom and right before each patch embedding, where the published code drops the remainder.

    Args:
        arch: ``micro``, ``tiny``, ``small``, ``medium``, ``large`` or ``huge``, or a dict of ``embed_dims``,
            ``depths``, ``num_heads`` and ``mlp_ratios``, each with one number for every stage.
        in_channels: channels of the input image.
        kernel_size: width of the attention window in stages 1 to 3, odd; 3 in every published model.
        attn_drop_rate: dropout on the attention weights while training.
        recompute_ffn: compute the hidden maps of the FFNs again in the backward pass. They are most of what training
            keeps; this costs much less time than ``with_cp``, and saves less memory. (On a CPU the largest are computed
            again in any case: it is no slower.)

    ``out_indices``, ``frozen_stages``, ``drop_path_rate``, ``with_cp`` and ``init_cfg`` are those of
    ``PyramidBackbone``, as are the outputs and the errors.

    Raises:
        ValueError: also for an even or negative ``kernel_size``, and an ``attn_drop_rate`` outside of [0, 1).
    """

    carries_norms = True
    arch_zoo = {
        'micro': dict(embed_dims=(32, 64, 160, 256), depths=(2, 3, 3, 2), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4)),
        'tiny': dict(embed_dims=(64, 128, 320, 512), depths=(2, 4, 3, 2), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4)),
        'small': dict(embed_dims=(64, 128, 320, 512), depths=(3, 6, 13, 3), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4)),
        'medium': dict(embed_dims=(64, 128, 320, 512), depths=(3, 8, 30, 3), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4)),
        'large': dict(embed_dims=(64, 128, 320, 512), depths=(3, 8, 40, 3), num_heads=(1, 2, 5, 8), mlp_ratios=(4, 4, 4, 4)),
        'huge': dict(embed_dims=(64, 128, 320, 512), depths=(3, 12, 62, 3), num_heads=(1, 2, 5, 8), mlp_ratios=(4, 4, 4, 4)),
    }
    published = Published(
        url='https://github.com/ucasligang/SimViT',
        licence='none is given, so ask the authors before you pass their weights on',
        released=('micro', 'tiny', 'small'),
        rename=(
            (r'^(patch_embed|block|norm)([1-4])\.', stage_before),
            (r'^(stages\.\d)\.block\.', r'\1.blocks.'),
            (r'\.attn\.(q|kv)_proj\.', r'.attn.\1.'),
            (r'\.mlp\.', '.ffn.'),
            (r'\.dwconv\.dwconv\.', '.dwconv.'),
        ),
        drop=r'^head\.',
        classifiers=('micro', 'tiny', 'small'),
    )

    def __init__(self, arch: str | Mapping = 'tiny', in_channels: int = 3, kernel_size: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3), frozen_stages: int = -1, drop_path_rate: float = 0.1,
                 attn_drop_rate: float = 0.0, with_cp: bool = False, recompute_ffn: bool = False,
                 init_cfg: dict | list[dict] | None = None, **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        if not is_positive(kernel_size) or kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd and positive, so that a window has a centre; got {kernel_size!r}')
        if not is_rate(attn_drop_rate):
            raise ValueError(f'attn_drop_rate must lie in [0, 1), got {attn_drop_rate!r}')
        self.kernel_size = kernel_size
        self.attn_drop_rate = attn_drop_rate
        self.recompute_ffn = recompute_ffn
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Central attention in all stages but the fourth."""
        dims, num_heads, mlp_ratio = (self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios'))

        def attention() -> nn.Module:
            if index < 3:
                return CentralAttention(dims, num_heads, self.kernel_size, self.attn_drop_rate)
            return Attention(dims, num_heads, self.attn_drop_rate)

        blocks = [Block(attention(), ConvFFN(dims, dims * mlp_ratio, self.recompute_ffn), dims, rate, EPS)
                  for rate in drop_path_rates]
        return Stage(PatchEmbed(in_channels, dims, self.patch_sizes[index]), blocks, self.with_cp)

    def norm_layer(self, index: int) -> partial:
        """A layer norm of every map."""
        return partial(nn.LayerNorm, eps=EPS)

    def init_random_weights(self) -> None:
        """Draw the published random initialisation, with one exception: the first patch embedding's biases, published as
        zero, are drawn as torch draws those of a convolution. ``layers.draw_bias`` says why.
        """
        init_as_pvt(self)
        draw_bias(self.stages[0].patch_embed.proj)
