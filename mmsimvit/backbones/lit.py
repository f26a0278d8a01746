"""LIT: Less is More: Pay Less Attention in Vision Transformers (Pan et al., AAAI 2022, arXiv 2105.14217)."""
from collections.abc import Mapping, Sequence
from functools import partial
from math import isqrt
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import (
    FFN,
    Block,
    PatchEmbed,
    RelativePositionBias,
    Stage,
    fit_loaded,
    multi_head_attention,
    pad_for_patches,
    spread_rows,
)
from ..layers.attention import is_wrapped
from ..ops.finite import split_finite
from ..weights import Published, stage_before
from .base import is_numbers, is_sequence
from .pyramid import PyramidBackbone

# Of the biases that exist at once. Much smaller ones are slower, and leave holes in glibc's heap.
CHUNK_BYTES = 1 << 26
ATTENTION_FROM = 2  # the first stage, from 0, whose blocks attend; the blocks before it are FFNs alone


class DeformableMerging(nn.Module):
    """Deformable token merging (DTM in the paper): a 2 x 2 convolution with stride 2 whose four taps are moved by offsets that
    another one predicts (DCNv1, 1703.06211), batch norm and GELU.

    The input is padded to even sizes, where the published code drops the last row or column; the deformable convolution
    takes what lies outside of its input as zeros in any case.

    Raises:
        ImportError: if torchvision, whose operator this is, cannot be imported.
    """

    def __init__(self, in_channels: int, embed_dims: int):
        super().__init__()
        try:
            from torchvision.ops import deform_conv2d
        except (ImportError, RuntimeError) as error:  # RuntimeError: it is built for another torch
            raise ImportError(f"LIT merges tokens by torchvision's deformable convolution, and torchvision cannot be imported "
                              f'({error}); install the one for torch {torch.__version__}: pip install torchvision') from error
        self.deform_conv2d = deform_conv2d
        self.offset = nn.Conv2d(in_channels, 8, 2, 2)  # (down, right) for each tap, in pixels of the input
        # Holds the deformable convolution's parameters, and stands before its norm, where mmcv's fuse_conv_bn looks for it.
        self.conv = nn.Conv2d(in_channels, embed_dims, 2, 2)
        self.norm = nn.BatchNorm2d(embed_dims)
        self.reset_offset()

    def reset_offset(self) -> None:
        """Offsets begin at zero, so that training starts from plain merging."""
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / 2), ceil(W / 2), C)``."""
        x = pad_for_patches(x, 2)
        # The operator takes tensors of one dtype, autocast or not, and not bfloat16.
        dtype, bias = self.conv.weight.dtype, self.conv.bias
        assert bias is not None  # as it was built
        offset, not_a_number = self.offset(x), None
        # Asked on a CPU alone, where it holds up nothing; what makes offsets finite keeps copies of them.
        unasked = torch.compiler.is_compiling() or offset.device.type != 'cpu' or is_wrapped(offset)
        if unasked or not offset.isfinite().all():
            offset, not_a_number = split_finite(offset)
        tensors = (x, offset, self.conv.weight, bias)
        y = self.deform_conv2d(*(t.float() if dtype == torch.bfloat16 else t.to(dtype) for t in tensors), stride=2)
        if not_a_number is not None:
            y = y + not_a_number.sum(1, keepdim=True)
        return F.gelu(self.norm(y.to(dtype))).permute(0, 2, 3, 1)


class PositionEmbedding(nn.Module):
    """A learned vector for each position of a grid, resized bilinearly to other grids (as PVT, 2102.12122)."""

    def __init__(self, dims: int, grid: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(1, dims, grid, grid))
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(fit_loaded)

    def reset_parameters(self) -> None:
        """Draw the vectors from a normal distribution with a deviation of 0.02."""
        nn.init.trunc_normal_(self.embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        return x + resize(self.embedding, x.shape[1:3]).permute(0, 2, 3, 1)

    def fit_state_dict(self, state_dict: dict, prefix: str) -> None:
        """Resize, in place of the entry, embeddings that were learned for another grid."""
        embedding = state_dict.get(f'{prefix}embedding')
        if isinstance(embedding, Tensor) and embedding.is_floating_point() and embedding.dim() == 4:
            state_dict[f'{prefix}embedding'] = resize(embedding, self.embedding.shape[2:])


def resize(embedding: Tensor, size: Sequence[int]) -> Tensor:
    """``(1, C, h, w)`` -> ``(1, C, *size)``."""
    return F.interpolate(embedding, size=size, mode='bilinear', align_corners=False)


class Attention(nn.Module):
    """Multi-head self-attention of every pixel to every pixel, with a relative position bias if ``bias_grid`` names one.

    The bias has a number for each head and each pair of pixels. Where that is much, queries are taken a few rows at a time, and
    in training computed again, so that neither the biases nor the weights of a whole map exist at once.
    """

    def __init__(self, dims: int, num_heads: int, bias_grid: int | None):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, 3 * dims)
        self.position_bias = RelativePositionBias(bias_grid, num_heads) if bias_grid else None
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        query, key, value = self.qkv(x).flatten(1, 2).chunk(3, -1)
        if self.position_bias is None:
            out = multi_head_attention(query, key, value, self.num_heads)
        else:
            out = self._attend_with_bias(self.position_bias, query, key, value, *x.shape[1:3])
        return self.proj(out.unflatten(1, x.shape[1:3]))

    def _attend_with_bias(self, position_bias: RelativePositionBias, query: Tensor, key: Tensor, value: Tensor, height: int,
                          width: int) -> Tensor:
        if torch.compiler.is_compiling() or self.num_heads * (height * width)**2 * query.element_size() <= CHUNK_BYTES:
            return multi_head_attention(query, key, value, self.num_heads, position_bias(height, width))
        step = max(CHUNK_BYTES // (self.num_heads * height * width**2 * query.element_size()), 1)
        columns, outs = position_bias.spread_columns(height, width), []
        for first in range(0, height, step):
            last = min(first + step, height)
            inputs = (query[:, first * width:last * width], key, value, columns[:, first:last + height - 1], height, width)
            outs.append(checkpoint(self._attend_rows, *inputs, use_reentrant=False, preserve_rng_state=False)
                        if torch.is_grad_enabled() else self._attend_rows(*inputs))
        return torch.cat(outs, 1)

    def _attend_rows(self, query: Tensor, key: Tensor, value: Tensor, columns: Tensor, height: int,
                     width: int) -> Tensor:
        bias = spread_rows(columns, columns.shape[1] - height + 1, height, width)
        return multi_head_attention(query, key, value, self.num_heads, bias)


def shape_positions(converted: dict[str, Tensor]) -> None:
    """Of published ``ti``: embeddings as maps, without that of the class token, and without the norm, which is the
    classifier's: its maps have none."""
    embeddings = [name for name in converted if name.endswith('.embedding')]
    for name in embeddings:
        rows = converted[name]
        if isinstance(rows, Tensor) and rows.dim() == 3:
            size = isqrt(rows.shape[1])
            converted[name] = rows[:, rows.shape[1] - size**2:].transpose(1, 2).unflatten(2, (size, size)).contiguous()
    if embeddings:
        for name in ('stages.3.norm.weight', 'stages.3.norm.bias'):
            converted.pop(name, None)


@MODELS.register_module()
class LIT(PyramidBackbone):
    """LIT: stages 1 and 2 have FFNs alone, stages 3 and 4 full self-attention, and deformable convolutions merge tokens
    between the stages.

    There are two families: ``ti`` with absolute position embeddings and no norms on its maps, and ``s``, ``m``, ``b`` with
    relative position biases and norms on the maps of stages 2 to 4. The biases are stored for the grids of published
    detectors, and resampled to the map at hand in every forward; tables for other grids, as classifiers and segmentors
    were published with, are resampled when they are loaded.

    On heights and widths that are multiples of 32 the outputs are the published model's. Other sizes are padded with zeros
    at the bottom and right before each merging, where the published code drops the remainder.

    Args:
        arch: ``ti``, ``s``, ``m`` or ``b``, or a dict of ``embed_dims``, ``depths``, ``num_heads`` (in stages 1 and 2
            nothing uses them) and ``mlp_ratios``, each with one number for every stage; ``position_grids``, the sizes of the
            four grids that absolute position embeddings are stored for, or None; ``bias_grids``, the sizes of the two grids
            that the relative position biases of stages 3 and 4 are stored for, or None; ``norm_eps``, of the norms in
            blocks; and ``map_norms``, the stages, from 0, whose maps are normalised.
        in_channels: channels of the input image.
        drop_path_rate: 0.1 for ``ti``, 0.2 for ``s``, 0.3 for ``m`` and 0.5 for ``b`` as published for ImageNet.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the
    outputs and the errors.
    """

    adds_norms = True
    arch_zoo = {
        'ti': dict(embed_dims=(64, 128, 320, 512), depths=(3, 4, 6, 3), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4),
                   position_grids=(56, 28, 14, 7), bias_grids=None, norm_eps=1e-6, map_norms=()),
        's': dict(embed_dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), mlp_ratios=(4, 4, 4, 4),
                  position_grids=None, bias_grids=(50, 25), norm_eps=1e-5, map_norms=(1, 2, 3)),
        'm': dict(embed_dims=(96, 192, 384, 768), depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), mlp_ratios=(4, 4, 4, 4),
                  position_grids=None, bias_grids=(50, 25), norm_eps=1e-5, map_norms=(1, 2, 3)),
        'b': dict(embed_dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), mlp_ratios=(4, 4, 4, 4),
                  position_grids=None, bias_grids=(50, 25), norm_eps=1e-5, map_norms=(1, 2, 3)),
    }
    arch_rules = {
        'position_grids': ('None or 4 positive whole numbers', lambda value: value is None or is_numbers(value, 4)),
        'bias_grids': ('None or 2 positive whole numbers, for stages 3 and 4',
                       lambda value: value is None or is_numbers(value, 2)),
        'norm_eps': ('a positive number', lambda value: isinstance(value, Real) and float(value) > 0),
        'map_norms': ('stages among 0, 1, 2, 3', lambda value: is_sequence(value) and all(i in range(4) for i in value)),
    }
    published = Published(
        url='https://github.com/ziplab/LIT',
        licence='Apache-2.0',
        released=('ti', 's', 'm', 'b'),
        rename=(
            # ti
            (r'^(patch_embed|block|pos_embed)([1-4])(?:\.|$)', stage_before),
            (r'^(stages\.\d)\.block\.', r'\1.blocks.'),
            (r'^(stages\.\d)\.patch_embed\.', r'\1.patch_embed.0.'),
            (r'^(stages\.\d)\.pos_embed\.', r'\1.patch_embed.1.embedding'),
            # s, m, b
            (r'^patch_embed\.', 'stages.0.patch_embed.'),
            (r'^layers\.(\d)\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.'),
            (r'^layers\.', 'stages.'),
            (r'^norm([1-3])\.', r'stages.\1.norm.'),
            (r'^norm\.', 'stages.3.norm.'),  # of classifiers: in its place, where published detectors have a new one
            (r'\.relative_position_bias_table$', '.position_bias.table'),
            # both
            (r'\.dconv\.conv_offset\.', '.offset.'),
            (r'\.dconv\.', '.conv.'),
            (r'\.norm_layer\.', '.norm.'),
            (r'\.mlp\.', '.ffn.'),
        ),
        drop=r'^head\.|^cls_token$|\.relative_position_index$',
        finish=shape_positions,
        classifiers=('s', 'm', 'b'),  # ti's has a class token
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
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Patches are embedded in the first stage, and merged in the others."""
        dims, num_heads, mlp_ratio = (self.arch[key][index] for key in ('embed_dims', 'num_heads', 'mlp_ratios'))
        patch_embed: nn.Module = (DeformableMerging(in_channels, dims) if index
                                  else PatchEmbed(in_channels, dims, self.patch_sizes[0]))
        if self.arch['position_grids']:
            patch_embed = nn.Sequential(patch_embed, PositionEmbedding(dims, self.arch['position_grids'][index]))
        blocks = []
        for rate in drop_path_rates:
            attention = None
            if index >= ATTENTION_FROM:
                grids = self.arch['bias_grids']
                attention = Attention(dims, num_heads, grids[index - ATTENTION_FROM] if grids else None)
            blocks.append(Block(attention, FFN(dims, dims * mlp_ratio), dims, rate, self.arch['norm_eps']))
        return Stage(patch_embed, blocks, self.with_cp)

    def norm_layer(self, index: int) -> partial | None:
        """A layer norm of the maps that ``map_norms`` names."""
        return partial(nn.LayerNorm, eps=1e-5) if index in self.arch['map_norms'] else None

    def init_random_weights(self) -> None:
        """Draw the published random initialisation."""
        super().init_random_weights()
        for module in self.modules():
            if isinstance(module, DeformableMerging):
                module.reset_offset()
