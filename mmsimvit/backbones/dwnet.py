"""DWNet: On the Connection between Local Attention and Dynamic Depth-wise Convolution (Han et al., ICLR 2022,
arXiv 2106.04263)."""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import FFN, DropPath, PatchEmbed, PatchMerging, Stage, crop, pad_to_multiple
from ..ops import inhomogeneous_conv
from ..weights import Published
from .pyramid import PyramidBackbone

KERNEL_SIZE = 7
MAP_MULTIPLE = 7  # published detectors pad maps to multiples of it, a trace of the windows that the convolutions replace


class DynamicDepthwiseConv(nn.Module):
    """Depth-wise convolution of each image with kernels predicted from its mean ("dynamic" in the paper).

    Raises:
        ValueError: for one image in training, whose batch norm would have one number for each channel.
    """

    def __init__(self, dims: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dims, dims // 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(dims // 4)
        self.conv2 = nn.Conv2d(dims // 4, KERNEL_SIZE**2 * dims, 1)
        self.bias = nn.Parameter(torch.empty(dims))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set ``bias`` to zero."""
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        if self.bn.training and x.shape[0] == 1 and isinstance(self.bn, nn.BatchNorm2d):
            raise ValueError("a dynamic DWNet's kernels go through a batch norm over the images, which needs two of them in "
                             'each process; take a larger batch and leave out an incomplete last one (drop_last=True of the '
                             "data loader, or of its batch_sampler), sync_bn='torch' with several processes, or freeze the "
                             'stages')
        kernels = self.conv2(F.relu(self.bn(self.conv1(x.mean((2, 3), keepdim=True)))))
        batch, channels = x.shape[:2]
        if torch.compiler.is_compiling():  # a number of groups that is not known is no convolution of a graph
            windows = F.pad(x, (KERNEL_SIZE // 2, ) * 4).unfold(2, KERNEL_SIZE, 1).unfold(3, KERNEL_SIZE, 1)
            kernels = kernels.view(batch, channels, 1, 1, KERNEL_SIZE, KERNEL_SIZE)
            return (windows * kernels).sum((-2, -1)) + self.bias[:, None, None]
        if not batch:  # a convolution has at least one group
            return x + self.bias[:, None, None]
        kernels = kernels.reshape(-1, 1, KERNEL_SIZE, KERNEL_SIZE)
        out = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, padding=KERNEL_SIZE // 2, groups=batch * channels)
        return out.view_as(x) + self.bias[:, None, None]


class InhomogeneousDepthwiseConv(nn.Module):
    """Depth-wise convolution with kernels predicted at each pixel ("inhomogeneous dynamic" in the paper)."""

    def __init__(self, dims: int, group_size: int):
        super().__init__()
        self.group_size = group_size
        self.conv1 = nn.Conv2d(dims, dims // 4, 1)
        self.bn = nn.BatchNorm2d(dims // 4)
        self.conv2 = nn.Conv2d(dims // 4, dims // group_size * KERNEL_SIZE**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        return inhomogeneous_conv(x, self.conv2(F.relu(self.bn(self.conv1(x)))), self.group_size)


class ConvBranch(nn.Module):
    """What stands in the place of attention: a depth-wise convolution between two point-wise ones, each with a batch norm."""

    def __init__(self, dims: int, dwconv: nn.Module, pads: bool):
        super().__init__()
        self.pads = pads
        self.conv1 = nn.Conv2d(dims, dims, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dims)
        self.dwconv = dwconv
        self.bn2 = nn.BatchNorm2d(dims)
        self.conv2 = nn.Conv2d(dims, dims, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        height, width = x.shape[2:]
        if self.pads:
            x = pad_to_multiple(x, MAP_MULTIPLE)  # no longer zero after the batch norm, so it is seen: part of the numbers
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.dwconv(x)))
        return crop(self.bn3(self.conv2(x)), height, width)


class Block(nn.Module):
    """Convolutions and FFN, each added to its input; batch norms throughout."""

    def __init__(self, conv: ConvBranch, ffn: FFN, dims: int, drop_path: float):
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(dims)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        x = x.permute(0, 3, 1, 2)
        x = x + self.drop_path(self.conv(x))
        return (x + self.drop_path(self.ffn(self.bn(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


@MODELS.register_module()
class DWNet(PyramidBackbone):
    """DWNet: depth-wise 7 x 7 convolutions where Swin has window attention, with static kernels, with kernels predicted for
    each image (D-DW), or with kernels predicted for each pixel (I-D-DW).

    The outputs are the published detection code's on images of any size (for I-D-DW, of which there is none, the published
    classification code's, whose maps have no norms; other sizes than multiples of 32 are padded with zeros at the bottom
    and right). The batch norms are best synchronised over processes with few images each: ``sync_bn='torch'`` in a config.

    Args:
        arch: ``t`` or ``b`` (static), ``dynamic_t`` or ``dynamic_b`` (D-DW), ``idynamic_t`` or ``idynamic_b`` (I-D-DW), or a
            dict of ``embed_dims``, ``depths`` and ``mlp_ratios``, each with one number for every stage; ``kernels``, which is
            ``static``, ``dynamic`` or ``inhomogeneous``; ``channels_per_kernel``, one number for every stage, how many
            consecutive channels share an inhomogeneous kernel (elsewhere none do); and ``dense``: whether, as in published
            detectors and unlike in published classifiers, the returned maps have norms and are padded to multiples of 7
            before the convolutions.
        in_channels: channels of the input image.
        drop_path_rate: as published 0.2 for the small variants, in segmentors 0.3; for the large ones 0.5 for ImageNet and
            0.3 elsewhere.

    ``out_indices``, ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PyramidBackbone``, as are the
    outputs and the errors.
    Each returned map has a norm of its own: name in ``out_indices`` the maps that are used and no others (with
    ``FPN(start_level=1)``, stages 1 to 3), or distributed training stops at parameters without gradient.
    """

    adds_norms = True
    arch_zoo = {
        prefix + size: dict(embed_dims=(dims, 2 * dims, 4 * dims, 8 * dims), depths=depths, mlp_ratios=(4, 4, 4, 4),
                            kernels=kernels, channels_per_kernel=channels, dense=kernels != 'inhomogeneous')
        for prefix, kernels in (('', 'static'), ('dynamic_', 'dynamic'), ('idynamic_', 'inhomogeneous'))
        for size, dims, depths, channels in (('t', 96, (2, 2, 6, 2), (3, 6, 12, 24)), ('b', 128, (2, 2, 18, 2), (4, 8, 16, 32)))
    }
    arch_rules = {
        'kernels': ('static, dynamic or inhomogeneous', lambda value: value in ('static', 'dynamic', 'inhomogeneous')),
        'dense': ('True or False', lambda value: isinstance(value, bool)),
    }
    published = Published(
        url='https://github.com/Atten4Vis/DemystifyLocalViT',
        licence='MIT',
        released=('t', 'b', 'dynamic_t', 'dynamic_b'),
        rename=(
            (r'^patch_embed\.', 'stages.0.patch_embed.'),
            (r'^layers\.(\d)\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.'),
            (r'^layers\.', 'stages.'),
            (r'^norm([0-3])\.', r'stages.\1.norm.'),
            # Published numbers are from 0; the depth-wise convolution in the middle has none.
            (r'\.attn2conv\.conv2\.', '.conv.conv2.'),
            (r'\.attn2conv\.bn2\.', '.conv.bn3.'),
            (r'\.attn2conv\.bn\.', '.conv.bn2.'),
            (r'\.attn2conv\.bn0\.', '.conv.bn1.'),
            (r'\.attn2conv\.conv0\.', '.conv.conv1.'),
            (r'\.attn2conv\.conv\.', '.conv.dwconv.'),
            (r'\.dwconv\.conv1\.0\.', '.dwconv.conv1.'),  # inhomogeneous
            (r'\.dwconv\.conv1\.1\.', '.dwconv.bn.'),
            (r'\.dwconv\.conv2\.0\.', '.dwconv.conv2.'),
            (r'\.mlp\.', '.ffn.'),
        ),
        drop=r'^head\.|^norm\.',  # the classifier's layer norm, where detectors have batch norms
    )

    def __init__(self,
                 arch: str | Mapping = 't',
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
        dims, mlp_ratio, group_size = (self.arch[key][index] for key in ('embed_dims', 'mlp_ratios', 'channels_per_kernel'))
        patch_embed = PatchMerging(in_channels, dims) if index else PatchEmbed(in_channels, dims, self.patch_sizes[0])
        blocks = [Block(ConvBranch(dims, self._build_dwconv(dims, group_size), self.arch['dense']),
                        FFN(dims, dims * mlp_ratio), dims, rate) for rate in drop_path_rates]
        return Stage(patch_embed, blocks, self.with_cp)

    def norm_layer(self, index: int) -> type[nn.Module] | None:
        """A batch norm of every map, as published detectors have and published classifiers have not."""
        return nn.BatchNorm2d if self.arch['dense'] else None

    def _build_dwconv(self, dims: int, group_size: int) -> nn.Module:
        if self.arch['kernels'] == 'dynamic':
            return DynamicDepthwiseConv(dims)
        if self.arch['kernels'] == 'static':
            return nn.Conv2d(dims, dims, KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=dims)
        if dims % group_size:
            raise ValueError(f'each of embed_dims must be a multiple of its channels_per_kernel, got {dims} and {group_size}')
        return InhomogeneousDepthwiseConv(dims, group_size)
