import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .padding import pad_for_patches, split_into_patches


class PatchEmbed(nn.Module):
    """Non-overlapping patches, projected and normalised.

    Args:
        in_channels, embed_dims: channels of the input and of the output.
        patch_size: height and width of a patch, in pixels.
        has_norm: whether they are normalised.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int, has_norm: bool = True):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, patch_size)
        self.norm = nn.LayerNorm(embed_dims, eps=1e-5) if has_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / patch_size), ceil(W / patch_size), C)``."""
        x = self.proj(pad_for_patches(x, self.patch_size))
        return self.norm(x.permute(0, 2, 3, 1))


class ConvEmbed(nn.Module):
    """Overlapping patches: a strided convolution, and a norm.

    Images smaller than the kernel without its padding would give no patch. They get zeros at the bottom and right.

    Args:
        in_channels, embed_dims: channels of the input and of the output.
        kernel_size, stride: of the convolution, in pixels.
        padding: zeros on each side; half the kernel if None, so that maps are rounded up.
        eps: of the norm.
        bias: whether the convolution has one.
    """

    def __init__(self, in_channels: int, embed_dims: int, kernel_size: int, stride: int, padding: int | None = None,
                 eps: float = 1e-5, bias: bool = True):
        super().__init__()
        padding = kernel_size // 2 if padding is None else padding
        self.min_size = kernel_size - 2 * padding
        self.proj = nn.Conv2d(in_channels, embed_dims, kernel_size, stride, padding, bias=bias)
        self.norm = nn.LayerNorm(embed_dims, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, H', W', C)``, H' = floor((H - kernel_size + 2 * padding) / stride) + 1."""
        height, width = x.shape[2:]
        if height < self.min_size or width < self.min_size:
            x = F.pad(x, (0, max(self.min_size - width, 0), 0, max(self.min_size - height, 0)))
        x = self.proj(x.contiguous(memory_format=torch.channels_last))  # so that the norm finds channels innermost
        return self.norm(x.permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """The four pixels of each 2 x 2 cell side by side, normalised and projected (Swin, 2103.14030, section 3.1).

    Args:
        in_channels, embed_dims: channels of the input and of the output.
    """

    def __init__(self, in_channels: int, embed_dims: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels, eps=1e-5)
        self.reduction = nn.Linear(4 * in_channels, embed_dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / 2), ceil(W / 2), C)``."""
        x = split_into_patches(x, 2).permute(0, 2, 3, 5, 4, 1).flatten(3)  # column by column, as published
        return self.reduction(self.norm(x))
