"""SimViT as its authors formulate it, in our own words: the same numbers, computed with unfolded copies of the map.

The baseline that ratios are given to, for benchmarks alone.
"""
from collections.abc import Callable
from types import MethodType

import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones.simvit import Attention, CentralAttention
from ...layers import ConvFFN


def central_attention(query: Tensor, key_value: Tensor, num_heads: int, kernel_size: int) -> Tensor:
    """``(B, H, W, C)`` and ``(B, H, W, 2C)`` -> ``(B, H, W, C)``, by unfolding keys and values: im2col, then matmul."""
    batch, height, width, channels = query.shape
    dims = channels // num_heads
    query = query.reshape(batch, height * width, num_heads, 1, dims) * dims**-0.5
    key_value = F.unfold(key_value.permute(0, 3, 1, 2), kernel_size, padding=kernel_size // 2)
    key_value = key_value.view(batch, 2, num_heads, dims, kernel_size**2, height * width).permute(1, 0, 5, 2, 4, 3)
    key, value = key_value[0], key_value[1]
    weights = (query @ key.transpose(-2, -1)).softmax(-1)
    return (weights @ value).reshape(batch, height, width, channels)


def formulate(model: nn.Module) -> nn.Module:
    """Change a SimViT in place so that it computes as published; its parameters stay."""
    for module in model.modules():
        for kind, forward in FORWARDS.items():
            if isinstance(module, kind):
                module.forward = MethodType(forward, module)
    return model


def _central_attention_forward(self: CentralAttention, x: Tensor) -> Tensor:
    return self.proj(central_attention(self.q(x), self.kv(x), self.num_heads, self.kernel_size))


def _attention_forward(self: Attention, x: Tensor) -> Tensor:
    query = self.q(x).flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
    key, value = self.kv(x).flatten(1, 2).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1) * query.shape[-1]**-0.5).softmax(-1)
    return self.proj((weights @ value).transpose(1, 2).reshape(x.shape))


def _ffn_forward(self: ConvFFN, x: Tensor) -> Tensor:
    batch, height, width, _ = x.shape
    # With one image, the view's stride of the batch hides from the convolution that the channels lie innermost.
    x = self.fc1(x).flatten(1, 2).transpose(1, 2).view(batch, -1, height, width)
    x = self.dwconv(x).flatten(2).transpose(1, 2)
    return self.fc2(F.gelu(x)).unflatten(1, (height, width))


FORWARDS: dict[type[nn.Module], Callable] = {
    CentralAttention: _central_attention_forward, Attention: _attention_forward, ConvFFN: _ffn_forward}
