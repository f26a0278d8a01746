"""HAT-Net: Vision Transformers with Hierarchical Attention (Liu et al., Machine Intelligence Research 2024,
arXiv 2106.03180)."""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import trunc_normal_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import layers
from ..layers import (
    DropPath,
    InvertedResidual,
    mask_padding,
    merge_windows,
    multi_head_attention,
    split_into_patches,
    split_into_windows,
)
from ..weights import Published
from .base import is_numbers, is_sequence
from .pyramid import PyramidBackbone

STEM_DIMS = 16  # channels at half of the resolution


class Norm(nn.GroupNorm):
    """Normalises over all channels and positions of an image, with a weight and a bias for each channel."""

    def __init__(self, dims: int):
        super().__init__(1, dims, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        is_trained = torch.is_grad_enabled() and (self.weight.requires_grad or self.bias.requires_grad)
        if x.device.type == 'cpu' and (x.requires_grad or not is_trained):
            return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # On a CPU, torch's backward pass crashes if the map has no gradient. On a GPU, torch's kernel would copy the map to
        # channels first, and take one multiprocessor for each image.
        high = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(high, (1, 2, 3), correction=0, keepdim=True)
        scale = self.weight * (var + self.eps).rsqrt()
        return torch.addcmul(self.bias - mean * scale, high, scale).to(self.weight.dtype)  # float32 under autocast, as torch's


class Stem(nn.Module):
    """A quarter of the resolution by two strided convolutions. Nothing follows the second."""

    def __init__(self, in_channels: int, embed_dims: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM_DIMS, 3, stride=2, padding=1)
        self.norm = Norm(STEM_DIMS)
        self.conv2 = nn.Conv2d(STEM_DIMS, embed_dims, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / 4), ceil(W / 4), C)``."""
        x = self.conv1(x.contiguous(memory_format=torch.channels_last))  # as all that follows
        x = F.silu(self.norm(x.permute(0, 2, 3, 1)))
        return self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """Half of the resolution by a strided convolution, and a norm."""

    def __init__(self, in_channels: int, embed_dims: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dims, 3, stride=2, padding=1)
        self.norm = Norm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / 2), ceil(W / 2), C)``."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Attention(nn.Module):
    """Self-attention of every pixel to every pixel."""

    def __init__(self, dims: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = Norm(dims)
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        query, key, value = self.qkv(self.norm(x)).flatten(1, 2).chunk(3, -1)
        return self.proj(multi_head_attention(query, key, value, self.num_heads).view_as(x))


class HierarchicalAttention(nn.Module):
    """Self-attention in two steps (H-MHSA): inside small grids, and, on what that gives, of every pixel to a pooled map.

    What the first step gives is added to the input itself, not to its norm, and is not projected. What the second gives is
    added to its own input before the projection.
    """

    def __init__(self, dims: int, num_heads: int, grid_size: int, pool_ratio: int):
        super().__init__()
        self.num_heads = num_heads
        self.grid_size = grid_size
        self.pool_ratio = pool_ratio
        self.norm = Norm(dims)
        self.qkv = nn.Linear(dims, 3 * dims)
        self.local_norm = Norm(dims)
        self.q = nn.Linear(dims, dims)
        self.pool_norm = Norm(dims)
        self.kv = nn.Linear(dims, 2 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, H, W, C)``, and what ``mask_padding`` gives for it -> ``(B, H, W, C)``."""
        x = self.local_norm(x + self.attend_locally(self.norm(x), mask))
        key, value = self.kv(self.pool_norm(self.pool(x))).flatten(1, 2).chunk(2, -1)
        out = multi_head_attention(self.q(x).flatten(1, 2), key, value, self.num_heads)
        return self.proj(out.view_as(x) + x)

    def attend_locally(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``(B, H, W, C)``, and the mask -> ``(B, H, W, C)``.

        Padding comes after the norm, whose statistics are the map's alone, and no pixel attends to it.
        """
        size = (self.grid_size, self.grid_size)
        query, key, value = self.qkv(split_into_windows(x, size)).chunk(3, -1)
        out = multi_head_attention(query, key, value, self.num_heads, mask=mask)
        return merge_windows(out, size, *x.shape[:3])

    def pool(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> the means of its cells, ``(B, ceil(H / pool_ratio), ceil(W / pool_ratio), C)``; cells at the
        bottom and right may have fewer pixels."""
        x = x.permute(0, 3, 1, 2)
        if not torch.compiler.is_compiling():
            return F.avg_pool2d(x, self.pool_ratio, ceil_mode=True).permute(0, 2, 3, 1)
        # A trace of it would ask whether there are such cells.
        ones = torch.ones_like(x[:1, :1])
        total, count = (split_into_patches(part, self.pool_ratio).sum((4, 5)) for part in (x, ones))
        return (total / count).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Attention, which has its norm inside, and FFN, with a norm before and one after it, each added to its input."""

    def __init__(self, attn: nn.Module, ffn: nn.Module, dims: int, drop_path: float):
        super().__init__()
        self.attn = attn
        self.norm1 = Norm(dims)
        self.ffn = ffn
        self.norm2 = Norm(dims)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """``(B, H, W, C)``, and what else the attention takes -> ``(B, H, W, C)``."""
        x = x + self.drop_path(self.attn(x, *context))
        return x + self.drop_path(self.norm2(self.ffn(self.norm1(x))))


class Stage(layers.Stage):
    """A stage whose blocks share the mask of their grids.

    Args:
        patch_embed, blocks, with_cp: as there.
        grid_size: side of a grid, in pixels; 1 for none.
    """

    def __init__(self, patch_embed: nn.Module, blocks: Sequence[Block], with_cp: bool, grid_size: int):
        super().__init__(patch_embed, blocks, with_cp)
        self.grid_size = grid_size

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, H', W')``, channels last in memory."""
        x = self.patch_embed(x)
        mask = mask_padding(x, self.grid_size) if self.grid_size > 1 else None
        for block in self.blocks:
            x = self.run_block(block, x) if mask is None else self.run_block(block, x, mask)
        return x.permute(0, 3, 1, 2)


def flatten_projections(converted: dict[str, Tensor]) -> None:
    """Published 1 x 1 convolutions are linear layers here."""
    for name, tensor in converted.items():
        if tensor.shape[2:] == (1, 1):
            converted[name] = tensor.flatten(1)


@MODELS.register_module()
class HATNet(PyramidBackbone):
    """HAT-Net: attention inside grids and then to a pooled map in stages 1 to 3, over the whole map in stage 4; no positional
    encoding.

    On heights and widths that are multiples of 224 the outputs are the published model's, which takes no others. Here grids
    at the bottom and right may have fewer pixels, and so may the cells that are pooled. Every norm is over the whole map:
    it sees no padding of its own stage, but pixels by which images of a batch were padded change all of their maps.
    Code for dense prediction was not published: the maps are those that the classifier's stages hand on, without norms.

    Args:
        arch: ``tiny``, ``small``, ``medium`` or ``large``, or a dict of ``embed_dims``, ``depths``, ``num_heads``,
            ``mlp_ratios``, ``kernel_sizes`` (odd ones, of the FFNs' convolutions), ``grid_sizes`` (side of a grid, in pixels
            of the map; 1 for attention over the whole map) and ``pool_ratios`` (by how much the map that is attended to is
            smaller, where there are grids), each with one number for every stage.
        in_channels: channels of the input image.
        drop_path_rate: none was published for any variant.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the outputs and
    the errors.
    """

    arch_zoo = {
        name: dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads, mlp_ratios=(8, 8, 4, 4),
                   kernel_sizes=kernel_sizes, grid_sizes=(8, 7, 7, 1), pool_ratios=(8, 4, 2, 1))
        for name, embed_dims, depths, num_heads, kernel_sizes in (
            ('tiny', (48, 96, 240, 384), (2, 2, 6, 3), (1, 2, 5, 8), (3, 3, 3, 3)),
            ('small', (64, 128, 320, 512), (2, 3, 8, 3), (1, 2, 5, 8), (3, 3, 3, 3)),
            ('medium', (64, 128, 320, 512), (3, 6, 18, 3), (1, 2, 5, 8), (5, 3, 5, 3)),
            ('large', (64, 128, 320, 640), (3, 8, 27, 3), (1, 2, 5, 10), (3, 3, 3, 3)),
        )
    }
    arch_rules = {'kernel_sizes': ('4 odd positive whole numbers, one for each stage',
                                   lambda value: is_sequence(value) and is_numbers(value, 4)
                                   and all(size % 2 for size in value))}
    published = Published(
        url='https://github.com/yun-liu/HAT-Net',
        licence='none is given, so ask the authors before you pass their weights on',
        released=('tiny', 'small', 'medium', 'large'),
        rename=(
            (r'^patch_embed\.0\.', 'stages.0.patch_embed.conv1.'),
            (r'^patch_embed\.1\.', 'stages.0.patch_embed.norm.'),
            (r'^patch_embed\.3\.', 'stages.0.patch_embed.conv2.'),
            (r'^ds([2-4])\.', lambda m: f'stages.{int(m[1]) - 1}.patch_embed.'),
            (r'\.patch_embed\.conv\.', '.patch_embed.proj.'),
            (r'^blocks\.(\d)\.', r'stages.\1.blocks.'),
            (r'\.attn\.grid_norm\.', '.attn.local_norm.'),
            (r'\.attn\.ds_norm\.', '.attn.pool_norm.'),
            (r'\.conv\.conv1\.0\.', '.norm1.'),
            (r'\.conv\.conv1\.1\.', '.ffn.fc1.'),
            (r'\.conv\.conv2\.0\.', '.ffn.dwconv.'),
            (r'\.conv\.conv3\.0\.', '.ffn.fc2.'),
            (r'\.conv\.conv3\.1\.', '.norm2.'),
        ),
        drop=r'^classifier\.|\.attn\.proj_norm\.',  # the norms are never used
        finish=flatten_projections,
        classifiers=('tiny', 'small', 'medium', 'large'),
        head=(('classifier.1', 'head.fc'), ),
    )

    def __init__(self,
                 arch: str | Mapping = 'small',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.1,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        self.build_stages()

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Attention in two steps where there are grids."""
        dims, num_heads, mlp_ratio, kernel_size, grid_size, pool_ratio = (self.arch[key][index] for key in (
            'embed_dims', 'num_heads', 'mlp_ratios', 'kernel_sizes', 'grid_sizes', 'pool_ratios'))
        blocks = []
        for rate in drop_path_rates:
            attn = (HierarchicalAttention(dims, num_heads, grid_size, pool_ratio) if grid_size > 1
                    else Attention(dims, num_heads))
            ffn = InvertedResidual(dims, dims * mlp_ratio, F.silu, kernel_size, bias=False)
            blocks.append(Block(attn, ffn, dims, rate))
        return Stage((Downsample if index else Stem)(in_channels, dims), blocks, self.with_cp, grid_size)

    def init_random_weights(self) -> None:
        """Draw the published random initialisation: that of linear layers, and of convolutions too."""
        super().init_random_weights()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                trunc_normal_init(module, std=0.02)
