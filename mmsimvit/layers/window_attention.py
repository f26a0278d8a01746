import torch
from torch import Tensor, nn

from .attention import multi_head_attention
from .padding import crop, divide, pad_to_multiple
from .position_bias import RelativePositionBias
from .windows import merge_windows, split_into_windows

SHIFTED = -100  # added to the logits between pixels that only the cyclic shift brings together


class WindowAttention(nn.Module):
    """Self-attention inside windows, of a map that is cyclically shifted towards the top left (Swin, 2103.14030, section 3.2).

    Maps are padded with zeros at the bottom and right to whole windows, before the shift. The padding is not masked, as
    published.

    Args:
        dims: channels.
        num_heads: attention heads.
        window_size: height and width of a window.
        shift: by how many pixels; 0 for none.
        table_std: deviation of the initial position biases.
        shifts_small: whether maps are shifted too that are not larger than a window, in height or in width.
    """

    def __init__(self, dims: int, num_heads: int, window_size: int, shift: int, table_std: float = 0.02,
                 shifts_small: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.size = (window_size, window_size)
        self.shift = shift
        self.shifts_small = shifts_small
        self.qkv = nn.Linear(dims, 3 * dims)
        self.position_bias = RelativePositionBias(window_size, num_heads, table_std)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        batch, *shape = x.shape[:3]
        bias = self.position_bias(*self.size)
        shift: int | Tensor = self.shift
        if shift and not self.shifts_small:
            if torch.compiler.is_compiling():  # a trace would ask how large the map is
                lengths = torch.cat([torch.full((1, ), length, device=x.device) for length in shape])
                shift = (lengths > self.size[0]).all() * shift
            elif min(shape) <= self.size[0]:
                shift = 0
        if isinstance(shift, int) and not shift:
            return self.attend(x, bias)
        x = pad_to_multiple(x.permute(0, 3, 1, 2), self.size[0]).permute(0, 2, 3, 1)
        bias = bias + self.mask(x, shift)[:, None]
        if torch.compiler.is_compiling():  # expanding dimensions, a trace would ask whether there is one image
            bias = bias.index_select(0, divide(torch.arange(batch * bias.shape[0], device=x.device), bias.shape[0])[1])
        else:
            bias = bias.expand(batch, -1, -1, -1, -1).flatten(0, 1)
        x = roll(self.attend(roll(x, -shift), bias), shift)
        return crop(x.permute(0, 3, 1, 2), *shape).permute(0, 2, 3, 1)

    def attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """``(B, H, W, C)`` and what is added to the logits, for all windows or for each -> ``(B, H, W, C)``."""
        query, key, value = self.qkv(split_into_windows(x, self.size)).chunk(3, -1)
        return merge_windows(self.proj(multi_head_attention(query, key, value, self.num_heads, bias)), self.size, *x.shape[:3])

    def mask(self, x: Tensor, shift: int | Tensor) -> Tensor:
        """What keeps the regions of a shifted map apart that were not side by side, ``(windows, tokens, tokens)``."""
        row, column = ((torch.arange(length, device=x.device) >= length - shift).to(x.dtype) for length in x.shape[1:3])
        region = split_into_windows((2 * row[:, None] + column)[None, :, :, None], self.size)
        return (region != region.transpose(1, 2)).to(x.dtype) * SHIFTED


def roll(x: Tensor, shift: int | Tensor) -> Tensor:
    """``(B, H, W, C)``, moved down and right by so many pixels, and what falls out comes in again."""
    if isinstance(shift, int):
        return x.roll((shift, shift), (1, 2))
    for dim in (1, 2):
        x = x.index_select(dim, divide(torch.arange(x.shape[dim], device=x.device) - shift, x.shape[dim])[1])
    return x
