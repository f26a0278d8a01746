from torch import Tensor, nn

from .padding import pad_for_patches


class PatchEmbed(nn.Module):
    """Non-overlapping patches, projected and normalised.

    Args:
        in_channels, embed_dims: channels of the input and of the output.
        patch_size: height and width of a patch, in pixels.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, patch_size)
        self.norm = nn.LayerNorm(embed_dims, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / patch_size), ceil(W / patch_size), C)``."""
        x = self.proj(pad_for_patches(x, self.patch_size))
        return self.norm(x.permute(0, 2, 3, 1))


