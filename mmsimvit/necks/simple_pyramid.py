"""ViTDet's simple feature pyramid: Exploring Plain Vision Transformer Backbones for Object Detection (Li et al., ECCV 2022,
arXiv 2203.16527)."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)  # of the maps that are made of the backbone's; those that follow are taken from the last


@MODELS.register_module()
class ChannelNorm(nn.LayerNorm):
    """A layer norm of each pixel's channels in ``(B, C, H, W)``; also for heads, with ``norm_cfg=dict(type='ChannelNorm',
    eps=1e-6)``, as ViTDet has it.

    Args:
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Halve(nn.Module):
    """A 2 x 2 max pooling that rounds up."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, ceil(H / 2), ceil(W / 2))``."""
        if not torch.compiler.is_compiling():
            return F.max_pool2d(x, 2, ceil_mode=True)
        indices = every_second(x)
        x = F.pad(x, (0, 1, 0, 1), value=-torch.inf)  # pooling, a trace would ask whether the lengths are odd
        for dim, index in indices.items():
            x = torch.maximum(x.index_select(dim, index), x.index_select(dim, index + 1))
        return x


def every_second(x: Tensor) -> dict[int, Tensor]:
    """Every second row and column in ``(B, C, H, W)``, from the first on, by the dimension."""
    return {dim: 2 * torch.arange((x.shape[dim] + 1) // 2, device=x.device) for dim in (2, 3)}


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Maps of several strides from the one map of a plain backbone, for detectors and segmentors.

    A map of half the stride is a transposed 2 x 2 convolution with stride 2, which halves the channels too; where one follows
    another, a layer norm and GELU are between them. A map of twice the stride is a 2 x 2 max pooling, which rounds up, so that
    maps of any size will do. Each of the four maps, of the strides 4, 8, 16 and 32, then has a 1 x 1 and a 3 x 3 convolution
    without bias, each with a layer norm. Further maps are every second pixel of the one before. Heads that begin with stride 8,
    as RetinaNet's, take ``start_level=1``.

    Args:
        in_channels: channels of the backbone's map, alone or in a list.
        stride: of the backbone's map: 4, 8, 16 or 32.
        out_channels: channels of all maps.
        num_outs: how many maps, each of twice the stride of the one before; at least up to stride 32.
        halves_channels: whether transposed convolutions halve the channels, as ViTDet's code does, or keep them.
        start_level: the first map, 0 for that of stride 4 to 3 for that of stride 32; those before it are not made.
        init_cfg: as in mmengine; None for Xavier uniform convolutions, as in MMDetection's ``FPN``, for the paper is silent.

    Raises:
        ValueError: for a stride, a number of maps or a first one that are none of these, and for more or fewer maps than one.
    """

    def __init__(self, in_channels: int | Sequence[int], stride: int = 16, out_channels: int = 256, num_outs: int = 5,
                 halves_channels: bool = True, start_level: int = 0, init_cfg: dict | list[dict] | None = None):
        super().__init__(init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform'))
        channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        if len(channels) != 1:
            raise ValueError(f'in_channels must be those of one map, got {in_channels}; a plain backbone gives one with '
                             'out_indices=-1')
        if stride not in STRIDES:
            raise ValueError(f'stride must be among {STRIDES}, got {stride}')
        if start_level not in range(len(STRIDES)):
            raise ValueError(f'start_level must be 0 to {len(STRIDES) - 1}, got {start_level}')
        if num_outs < len(STRIDES) - start_level:
            raise ValueError(f'num_outs must be at least {len(STRIDES) - start_level}, got {num_outs}')
        self.num_outs = num_outs
        self.levels = nn.ModuleList()
        for index in range(start_level, len(STRIDES)):
            resample, width = _make_resample(channels[0], STRIDES.index(stride) - index, halves_channels)
            self.levels.append(nn.Sequential(
                *resample,
                nn.Conv2d(width, out_channels, 1, bias=False), ChannelNorm(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), ChannelNorm(out_channels)))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One map ``(B, C, H, W)`` in a sequence -> ``num_outs`` maps ``(B, out_channels, H', W')``; that of stride 4 has
        H' = H * stride / 4, and each half of the one before, rounded up."""
        if len(inputs) != 1:
            raise ValueError(f'{type(self).__name__} takes one map, got {len(inputs)}; a plain backbone gives one with '
                             'out_indices=-1')
        outs = [level(inputs[0]) for level in self.levels]
        for _ in range(self.num_outs - len(self.levels)):
            out = outs[-1]
            for dim, index in every_second(out).items():
                out = out.index_select(dim, index)
            outs.append(out)
        return tuple(outs)


def _make_resample(channels: int, doublings: int, halves_channels: bool) -> tuple[list[nn.Module], int]:
    """What doubles a map's height and width so many times, or halves them where that is negative; and its channels then."""
    if doublings <= 0:
        return [Halve() for _ in range(-doublings)], channels
    layers: list[nn.Module] = []
    for index in range(doublings):
        if index:
            layers += [ChannelNorm(channels), nn.GELU()]
        width = channels // 2 if halves_channels else channels
        layers.append(nn.ConvTranspose2d(channels, width, 2, 2))
        channels = width
    return layers, channels
