"""MPViT: Multi-Path Vision Transformer for Dense Prediction (Lee et al., CVPR 2022, arXiv 2112.11010)."""
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import normal_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import layers
from ..layers import FFN, run_block
from ..weights import Published
from .base import FeatureInfo, Layer, is_numbers
from .pyramid import PyramidBackbone

EPS = 1e-6  # of the layer norms; batch norms have torch's 1e-5
KERNELS = {3: 2, 5: 3, 7: 3}  # of the relative positions -> how many heads have it
NUM_HEADS = sum(KERNELS.values())


class ConvNorm(nn.Module):
    """A convolution without bias, a batch norm and, unless ``has_act`` is False, Hardswish."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1,
                 has_act: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.Hardswish() if has_act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, ceil(H / stride), ceil(W / stride))``."""
        return self.act(self.norm(self.conv(x)))


class Embed(ConvNorm):
    """A depth-wise and a point-wise convolution, with nothing between them, a batch norm and Hardswish."""

    def __init__(self, dims: int, stride: int):
        super().__init__(dims, dims, 1)
        self.dwconv = nn.Conv2d(dims, dims, 3, stride, padding=1, groups=dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, ceil(H / stride), ceil(W / stride))``."""
        return super().forward(self.dwconv(x))


class LocalPath(nn.Sequential):
    """The path of convolutions, which are added to its input."""

    def __init__(self, dims: int):
        super().__init__(ConvNorm(dims, dims, 1), ConvNorm(dims, dims, 3, groups=dims), ConvNorm(dims, dims, 1, has_act=False))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        return x + super().forward(x)


class RelativePosition(nn.Module):
    """What the surroundings of each pixel add to its values: a depth-wise convolution, whose size differs between heads."""

    def __init__(self, dims: int):
        super().__init__()
        self.channels = [dims // NUM_HEADS * heads for heads in KERNELS.values()]
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)
                                   for size, channels in zip(KERNELS, self.channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        parts = x.permute(0, 3, 1, 2).split(self.channels, 1)
        return torch.cat([conv(part).permute(0, 2, 3, 1) for conv, part in zip(self.convs, parts)], -1)


class FactorisedAttention(nn.Module):
    """Attention of channels to channels, which is linear in the number of pixels (CoaT, 2104.06399, sections 3.2 and 3.3)."""

    def __init__(self, dims: int):
        super().__init__()
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, relative: RelativePosition) -> Tensor:
        """``(B, H, W, C)``, and the relative positions that the blocks of a path share -> ``(B, H, W, C)``."""
        query, key, value = self.qkv(x).chunk(3, -1)
        positions = query * relative(value)
        query, key, value = (part.flatten(1, 2).unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2) for part in (query, key, value))
        # softmax(key)^T value, over all pixels, is what unit vectors attend to: so no weights are kept for the gradients.
        width = key.shape[-1]
        units = torch.eye(width, dtype=key.dtype, device=key.device).expand(key.shape[0], NUM_HEADS, -1, -1)
        context = F.scaled_dot_product_attention(units, key, value, scale=1.) * width**-0.5
        out = (query @ context).transpose(1, 2).flatten(2).view_as(x)
        return self.proj(out + positions)


class Block(layers.Block):
    """A block with a position encoding before it, which the blocks of a path share as they do relative positions."""

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """``(B, H, W, C)``, the position encoding and the relative positions -> ``(B, H, W, C)``."""
        position, relative = context
        x = x + position(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return super().forward(x, relative)


class Path(nn.Module):
    """A path of blocks, with the convolutions that they share."""

    def __init__(self, dims: int, mlp_ratio: int, drop_path_rates: Sequence[float], with_cp: bool):
        super().__init__()
        self.with_cp = with_cp
        self.position = nn.Conv2d(dims, dims, 3, padding=1, groups=dims)
        self.relative = RelativePosition(dims)
        self.blocks = nn.ModuleList(Block(FactorisedAttention(dims), FFN(dims, dims * mlp_ratio), dims, rate, EPS)
                                    for rate in drop_path_rates)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = run_block(block, self.with_cp, x, self.position, self.relative)
        return x.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Embeddings, each of which takes what the one before gives; paths side by side, one from each; and their aggregation."""

    def __init__(self, dims: int, out_dims: int, stride: int, mlp_ratio: int, num_paths: int,
                 drop_path_rates: Sequence[float], with_cp: bool):
        super().__init__()
        self.with_cp = with_cp
        self.embeds = nn.ModuleList(Embed(dims, 1 if index else stride) for index in range(num_paths))
        self.paths = nn.ModuleList(Path(dims, mlp_ratio, drop_path_rates, with_cp) for _ in range(num_paths))
        self.local = LocalPath(dims)
        self.aggregate = ConvNorm((num_paths + 1) * dims, out_dims, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C_out, H', W')``, channels last in memory."""
        maps: list[Tensor] = []
        for embed, path in zip(self.embeds, self.paths):
            x = run_block(embed, self.with_cp, x)
            if not maps:
                maps.append(run_block(self.local, self.with_cp, x))
            maps.append(path(x))
        return run_block(self.aggregate, self.with_cp, torch.cat(maps, 1))


@MODELS.register_module()
class MPViT(PyramidBackbone):
    """MPViT: in each stage, two or three paths of transformer blocks with attention between channels and one of convolutions.

    On images of any size the outputs are the published model's. They have no norms of their own, and the channels of the next
    stage: that of stage ``s`` has ``embed_dims[s + 1]``, the last ``embed_dims[3]``.

    Its batch norms keep learning, as in the published trainings for dense prediction, where they were synchronised over
    processes with few images each: ``sync_bn='torch'`` in a config.

    Args:
        arch: ``tiny``, ``xsmall``, ``small`` or ``base``, or a dict of ``embed_dims`` (multiples of 8, since there are 8
            heads), ``depths`` (blocks of each path), ``num_paths`` (without that of convolutions) and ``mlp_ratios``, each
            with one number for every stage.
        in_channels: channels of the input image.
        frozen_stages: -1 freezes nothing, 0 the stem, n >= 1 also the first n stages. Frozen modules have no gradient and
            stay in eval mode, so that the statistics of their batch norms are frozen too.
        drop_path_rate: as published for ImageNet 0 for ``tiny`` and ``xsmall``, 0.05 for ``small`` and 0.3 for ``base``.
        with_cp: recompute the stem, the embeddings, each block, the path of convolutions and the aggregation in the backward
            pass.
        norm_eval: keep the statistics of all batch norms as they are while training. Their weights and biases go on
            learning.

    ``out_indices`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the outputs and the errors.
    """

    arch_zoo = {
        'tiny': dict(embed_dims=(64, 96, 176, 216), depths=(1, 2, 4, 1), num_paths=(2, 3, 3, 3), mlp_ratios=(2, 2, 2, 2)),
        'xsmall': dict(embed_dims=(64, 128, 192, 256), depths=(1, 2, 4, 1), num_paths=(2, 3, 3, 3), mlp_ratios=(4, 4, 4, 4)),
        'small': dict(embed_dims=(64, 128, 216, 288), depths=(1, 3, 6, 3), num_paths=(2, 3, 3, 3), mlp_ratios=(4, 4, 4, 4)),
        'base': dict(embed_dims=(128, 224, 368, 480), depths=(1, 3, 8, 3), num_paths=(2, 3, 3, 3), mlp_ratios=(4, 4, 4, 4)),
    }
    arch_rules = {
        'embed_dims': (f'4 positive multiples of {NUM_HEADS}, one for each stage',
                       lambda value: is_numbers(value, 4) and not any(dims % NUM_HEADS for dims in value)),  # type: ignore
    }
    published = Published(
        url='https://github.com/youngwanLEE/MPViT',
        licence='GPL-3.0 for research, or a commercial licence of ETRI',
        released=('tiny', 'xsmall', 'small', 'base'),
        rename=(
            (r'\.bn\.', '.norm.'),
            (r'^patch_embed_stages\.(\d)\.patch_embeds\.(\d)\.patch_conv\.', r'stages.\1.embeds.\2.'),
            (r'(\.embeds\.\d)\.pwconv\.', r'\1.conv.'),
            (r'^mhca_stages\.', 'stages.'),
            (r'\.mhca_blks\.', '.paths.'),
            # The convolutions that the blocks of a path share have a name in each of them, and more.
            (r'\.(MHCA_layers\.\d+\.)?cpe\.proj\.', '.position.'),
            (r'\.(MHCA_layers\.\d+\.(factoratt_crpe\.)?)?crpe\.conv_list\.', '.relative.convs.'),
            (r'\.MHCA_layers\.', '.blocks.'),
            (r'\.factoratt_crpe\.', '.attn.'),
            (r'\.mlp\.', '.ffn.'),
            (r'\.InvRes\.conv1\.', '.local.0.'),
            (r'\.InvRes\.dwconv\.', '.local.1.conv.'),
            (r'\.InvRes\.norm\.', '.local.1.norm.'),
            (r'\.InvRes\.conv2\.', '.local.2.'),
        ),
        drop=r'^cls_head\.',
        classifiers=('tiny', 'xsmall', 'small', 'base'),
        head=(('cls_head.cls', 'head.fc'), ),
    )

    def __init__(self,
                 arch: str | Mapping = 'small',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.05,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 norm_eval: bool = False,
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        self.norm_eval = norm_eval
        dims = self.arch['embed_dims'][0]
        self.stem = nn.Sequential(ConvNorm(in_channels, dims // 2, 3, stride=2), ConvNorm(dims // 2, dims, 3, stride=2))
        self.build_stages()

    def describe_maps(self) -> Sequence[FeatureInfo]:
        """The map of each stage, with the channels of the next."""
        _, *following = dims = self.arch['embed_dims']
        return [FeatureInfo(channels, info.stride) for channels, info in zip((*following, dims[-1]), super().describe_maps())]

    def layer_order(self) -> list[Layer]:
        """The stem; of each stage what it has before its blocks, the blocks side by side, the path of convolutions and the
        aggregation."""
        order = [Layer('stem', 0)]
        for index, (depth, num_paths) in enumerate(zip(self.arch['depths'], self.arch['num_paths'])):
            stage = f'stages.{index}'
            order.append(Layer(stage, index + 1))
            order += [Layer(tuple(f'{stage}.paths.{path}.blocks.{block}' for path in range(num_paths)), index + 1,
                            is_block=True) for block in range(depth)]
            order.append(Layer((f'{stage}.local', f'{stage}.aggregate'), index + 1))
        return order

    def build_stage(self, index: int, in_channels: int, drop_path_rates: Sequence[float]) -> Stage:
        """Each path has the same drop path rates."""
        dims, mlp_ratio, num_paths = (self.arch[key][index] for key in ('embed_dims', 'mlp_ratios', 'num_paths'))
        return Stage(dims, self.describe_maps()[index].channels, 2 if index else 1, mlp_ratio, num_paths, drop_path_rates,
                     self.with_cp)

    def freeze(self) -> None:
        """Take the frozen parameters out of training and, with ``norm_eval``, keep the statistics of batch norms."""
        super().freeze()
        for module in self.modules() if self.norm_eval else ():
            if hasattr(module, 'running_mean'):  # of torch, MMCV ...
                module.training = False

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)`` -> the contiguous maps of the stages in ``out_indices``."""
        x = x.contiguous(memory_format=torch.channels_last)  # as all that follows
        return super().forward_features(run_block(self.stem, self.with_cp, x))

    def init_random_weights(self) -> None:
        """Draw the published random initialisation."""
        super().init_random_weights()
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:  # the others, of positions, are as torch makes them
                groups = module.groups if '.local.' in name else 1
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // groups
                normal_init(module, std=sqrt(2 / fan_out))
