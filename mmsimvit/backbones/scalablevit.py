"""ScalableViT: Rethinking the Context-oriented Generalization of Vision Transformer (Yang et al., arXiv 2203.10790)."""
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import layers
from ..layers import (
    FFN,
    ConvEmbed,
    draw_bias,
    fit_loaded,
    init_as_pvt,
    mask_padding,
    merge_windows,
    pad_for_patches,
    split_into_windows,
)
from ..weights import Published
from .pyramid import PyramidBackbone

EPS = 1e-6  # of all norms but that of the reduced tokens


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
    """Attention in heads whose values may have another width than queries and keys.

    Args:
        query: ``(B, N, C')``; head ``h`` has the channels from ``h * C' / num_heads`` on.
        key, value: ``(B, M, C')`` and ``(B, M, C)``.
        num_heads: how many heads share the channels.
        scale: factor of the logits.
        mask: which keys take part, ``(B, 1, 1, M)``; all if None.

    Returns:
        ``(B, N, C)``.
    """
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    width, value_width = query.shape[-1], value.shape[-1]
    if width < value_width:  # the kernels that keep no weights take one width
        query, key = (F.pad(x, (0, value_width - width)) for x in (query, key))
    elif width > value_width:
        value = F.pad(value, (0, width - value_width))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return out[..., :value_width].transpose(1, 2).flatten(2)


class WindowAttention(nn.Module):
    """Interactive window-based self-attention (IWSA): what attention inside windows gives, and the local interactive module
    (LIM), a depth-wise convolution of the values across the windows' borders."""

    def __init__(self, dims: int, num_heads: int, window_size: int):
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(dims, 3 * dims)
        self.lim = nn.Conv2d(dims, dims, 3, padding=1, groups=dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, H, W, C)``, and what ``mask_padding`` gives for the map -> ``(B, H, W, C)``."""
        size, shape = (self.window_size, self.window_size), x.shape[:3]
        query, key, value = self.qkv(split_into_windows(x, size)).chunk(3, -1)
        out = attend(query, key, value, self.num_heads, (x.shape[-1] // self.num_heads)**-0.5, mask)
        value = merge_windows(value, size, *shape).permute(0, 3, 1, 2)
        return self.proj(merge_windows(out, size, *shape) + self.lim(value).permute(0, 2, 3, 1))


class Reduction(nn.Module):
    """One token for each ``ratio x ratio`` pixels."""

    def __init__(self, dims: int, out_dims: int, ratio: int):
        super().__init__()
        self.ratio = ratio
        self.dwconv = nn.Conv2d(dims, dims, ratio, ratio, groups=dims)
        self.pwconv = nn.Conv2d(dims, out_dims, 1)
        self.norm = nn.LayerNorm(out_dims, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, ceil(H / ratio), ceil(W / ratio), C_out)``."""
        x = self.dwconv(pad_for_patches(x.permute(0, 3, 1, 2), self.ratio))
        return F.gelu(self.norm(self.pwconv(x).permute(0, 2, 3, 1)))


class ScalableAttention(nn.Module):
    """Scalable self-attention (SSA): of every pixel to reduced tokens, with queries and keys of another width than the values.

    Without reduction they have the same width, and ``query_ratio`` is in the scale alone, as published.
    """

    def __init__(self, dims: int, num_heads: int, reduction_ratio: int, query_ratio: float):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (query_ratio * dims / num_heads)**-0.5
        self.reduction: Reduction | None = None
        if reduction_ratio > 1:
            query_dims = int(query_ratio * dims)
            self.q = nn.Linear(dims, query_dims)
            self.reduction = Reduction(dims, query_dims, reduction_ratio)
            self.k = nn.Linear(query_dims, query_dims)
            self.v = nn.Linear(query_dims, dims)
        else:
            self.q = nn.Linear(dims, dims)
            self.kv = nn.Linear(dims, 2 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        query = self.q(x).flatten(1, 2)
        if self.reduction is None:
            key, value = self.kv(x).flatten(1, 2).chunk(2, -1)
        else:
            tokens = self.reduction(x).flatten(1, 2)
            key, value = self.k(tokens), self.v(tokens)
        return self.proj(attend(query, key, value, self.num_heads, self.scale).view_as(x))


class FirstBlock(layers.Block):
    """A block that the position generator (PEG of 2102.10882) follows, a depth-wise convolution added to its input."""

    def __init__(self, attn: nn.Module, ffn: nn.Module, dims: int, drop_path: float, eps: float):
        super().__init__(attn, ffn, dims, drop_path, eps)
        self.peg = nn.Conv2d(dims, dims, 3, padding=1, groups=dims)

    def forward(self, x: Tensor, *context: Tensor | int) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        x = super().forward(x, *context)
        return x + self.peg(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Stage(layers.Stage):
    """A stage with windows in its first, third ... block."""

    def __init__(self, patch_embed: nn.Module, blocks: Sequence[nn.Module], window_size: int, with_cp: bool):
        super().__init__(patch_embed, blocks, with_cp)
        self.window_size = window_size
        self.register_load_state_dict_pre_hook(fit_loaded)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, H', W')``, channels last in memory."""
        x = self.patch_embed(x)
        mask = mask_padding(x, self.window_size)
        for index, block in enumerate(self.blocks):
            x = self.run_block(block, x) if index % 2 or mask is None else self.run_block(block, x, mask)
        return x.permute(0, 3, 1, 2)

    def fit_state_dict(self, state_dict: dict, prefix: str) -> None:
        """Leave out a classifier's norm where the map has none."""
        if not isinstance(self.norm, nn.Module):
            state_dict.pop(f'{prefix}norm.weight', None)
            state_dict.pop(f'{prefix}norm.bias', None)


@MODELS.register_module()
class ScalableViT(PyramidBackbone):
    """ScalableViT: blocks with attention inside windows, which a convolution of the values connects, in turn with blocks in
    which each pixel attends to a reduced map, with queries and keys of their own width.

    On heights and widths that are multiples of 224 the outputs are the published model's, which takes no others. Here maps
    are padded at the bottom and right: to whole windows, whose padding no pixel attends to, and with zeros to multiples of
    the reduction. Code for dense prediction was not published: the maps are those that the published classifier's stages
    hand on, without norms, unless ``final_norm`` asks for the classifier's.

    Args:
        arch: ``s``, ``b`` or ``l``, or a dict of ``embed_dims``, ``depths``, ``num_heads``, ``mlp_ratios``,
            ``window_sizes``, ``reduction_ratios`` (by how much the map that is attended to is smaller) and ``query_ratios``
            (how wide queries and keys are, relative to ``embed_dims``; with a reduction ratio of 1, only the scale of the
            logits follows it), each with one number for every stage; and ``final_norm``: whether the map of stage 4 is
            normalised, as in published classifiers.
        in_channels: channels of the input image.
        drop_path_rate: as published for ImageNet 0.2 for ``s``, 0.5 for ``b`` and ``l``.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the outputs and
    the errors.

    Raises:
        ValueError: also for queries whose channels the heads cannot share.
    """

    arch_zoo = {
        name: dict(embed_dims=(dims, 2 * dims, 4 * dims, 8 * dims), depths=depths,
                   num_heads=(dims // 32, dims // 16, dims // 8, dims // 4), mlp_ratios=(4, 4, 4, 4),
                   window_sizes=(7, 7, 7, 7), reduction_ratios=(8, 4, 2, 1), query_ratios=query_ratios, final_norm=False)
        for name, dims, depths, query_ratios in (
            ('s', 64, (2, 2, 20, 2), (1.25, 1.25, 1.25, 1.)),
            ('b', 96, (2, 2, 14, 6), (2., 1.25, 1.25, 1.)),
            ('l', 128, (2, 6, 12, 4), (0.25, 0.5, 1., 1.)),
        )
    }
    arch_rules = {
        'query_ratios': ('4 positive numbers, one for each stage',
                         lambda value: isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 4
                         and all(isinstance(ratio, Real) and float(ratio) > 0 for ratio in value)),
        'final_norm': ('True or False', lambda value: isinstance(value, bool)),
    }
    published = Published(
        url='https://github.com/Yangr116/ScalableViT',
        licence='none is given, so ask the authors before you pass their weights on',
        released=('s', 'b', 'l'),
        rename=(
            (r'^patch_embeds\.(\d)\.', r'stages.\1.patch_embed.'),
            (r'^stages\.(\d)\.(\d+)\.', r'stages.\1.blocks.\2.'),
            (r'^pos_block\.(\d)\.proj\.0\.', r'stages.\1.blocks.0.peg.'),
            (r'^norm\.', 'stages.3.norm.'),
            (r'\.attn\.lim_func\.', '.attn.lim.'),
            (r'\.attn\.reduction\.0\.', '.attn.reduction.dwconv.'),
            (r'\.attn\.reduction\.1\.', '.attn.reduction.pwconv.'),
            (r'\.attn\.norm_act\.0\.', '.attn.reduction.norm.'),
            (r'\.mlp\.', '.ffn.'),
        ),
        drop=r'^head\.',
        classifiers=('s', 'b', 'l'),
        head=(('head.0', 'head.layers.0.fc'), ('head.1', 'head.layers.0.norm'), ('head.3', 'head.layers.1.fc')),
    )

    def __init__(self,
                 arch: str | Mapping = 's',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.2,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        for dims, heads, reduction, ratio in zip(*(self.arch[key] for key in (
                'embed_dims', 'num_heads', 'reduction_ratios', 'query_ratios'))):
            if reduction > 1 and (int(ratio * dims) < 1 or int(ratio * dims) % heads):
                raise ValueError('where reduction_ratios is not 1, the whole part of query_ratios times embed_dims must be a '
                                 f'multiple of num_heads, got {ratio}, {dims} and {heads}')
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Windows in the first, third ... block, scalable attention in the others."""
        dims, num_heads, mlp_ratio, window_size, reduction_ratio, query_ratio = (self.arch[key][index] for key in (
            'embed_dims', 'num_heads', 'mlp_ratios', 'window_sizes', 'reduction_ratios', 'query_ratios'))
        blocks = []
        for number, rate in enumerate(drop_path_rates):
            attention = (ScalableAttention(dims, num_heads, reduction_ratio, query_ratio) if number % 2
                         else WindowAttention(dims, num_heads, window_size))
            blocks.append((layers.Block if number else FirstBlock)(attention, FFN(dims, dims * mlp_ratio), dims, rate, EPS))
        patch_embed = ConvEmbed(in_channels, dims, 3 if index else 7, self.patch_sizes[index], eps=EPS)
        return Stage(patch_embed, blocks, window_size, self.with_cp)

    def norm_layer(self, index: int) -> partial | None:
        """A layer norm of the last map if ``final_norm`` asks for it."""
        return partial(nn.LayerNorm, eps=EPS) if index == 3 and self.arch['final_norm'] else None

    def init_random_weights(self) -> None:
        """Draw the published random initialisation, with one exception: the first patch embedding's biases, published as
        zero, are drawn as torch draws those of a convolution. ``layers.draw_bias`` says why.
        """
        init_as_pvt(self)
        draw_bias(self.stages[0].patch_embed.proj)
