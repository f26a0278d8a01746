from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from ..ops import conv_ffn_in_chunks
from ..ops.ffn import suits_chunks

HOOKS = '_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks'


class FFN(nn.Module):
    """Feed-forward network of each pixel: two linear layers with GELU between them.

    Args:
        dims, hidden_dims: channels of input and output, and between the layers.
        approximate: of GELU, as in torch: ``none`` for its exact form, or ``tanh``.
        recompute: compute GELU again in the backward pass, rather than keep what it gives.
    """

    def __init__(self, dims: int, hidden_dims: int, approximate: str = 'none', recompute: bool = False):
        super().__init__()
        self.approximate = approximate
        self.recompute = recompute
        self.fc1 = nn.Linear(dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        x = self.fc1(x)
        if self.recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return checkpoint(self._after_fc1, x, use_reentrant=False, preserve_rng_state=False)
        return self._after_fc1(x)

    def _after_fc1(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(x, approximate=self.approximate))


class ConvFFN(nn.Module):
    """Feed-forward network with a depth-wise 3 x 3 convolution before its GELU (PVT v2, 2106.13797, section 3.3).

    Args:
        dims, hidden_dims: channels of input and output, and between the layers.
        recompute: compute what follows the first layer again in the backward pass.
        adds_hidden: add what the convolution takes to what it gives, as Shunted Transformer does (2111.15193, section 3.3).
    """

    def __init__(self, dims: int, hidden_dims: int, recompute: bool = False, adds_hidden: bool = False):
        super().__init__()
        self.recompute = recompute
        self.adds_hidden = adds_hidden
        self.fc1 = nn.Linear(dims, hidden_dims)
        self.dwconv = nn.Conv2d(hidden_dims, hidden_dims, 3, padding=1, groups=hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        with_gradients = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))
        conv_bias = self.dwconv.bias
        if (conv_bias is not None and suits_chunks(x, self.fc1.weight, with_gradients, self.recompute)
                and self._is_as_built()):
            kernel = self.dwconv.weight
            if self.adds_hidden:  # which is one more at the middle of the kernel; low precision would round it, and is not here
                kernel = kernel + F.pad(kernel.new_ones(1, 1), (1, 1, 1, 1))
            return conv_ffn_in_chunks(x, self.fc1.weight, self.fc1.bias, kernel, conv_bias, self.fc2.weight, self.fc2.bias)
        x = self.fc1(x)
        if self.recompute and with_gradients and not torch.compiler.is_compiling():
            return checkpoint(self._after_fc1, x, use_reentrant=False, preserve_rng_state=False)
        return self._after_fc1(x)

    def _after_fc1(self, x: Tensor) -> Tensor:
        # Channels last, seen through a permutation: oneDNN and cuDNN take it as it is, while a (B, C, H, W) view of tokens
        # has strides that hide this where B is 1, and is copied.
        out = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(out + x if self.adds_hidden else out))

    def _is_as_built(self) -> bool:
        """Whether nobody quantized, wrapped, parametrized or watches the layers, so that their weights say all.

        Hooks are those of a layer and those of all modules, as FLOP counters and torch's ``ModuleTracker`` have.
        """
        layers = self.fc1, self.dwconv, self.fc2
        hooked = any(getattr(owner, name) for name in HOOKS for owner in layers) or any(
            getattr(torch_module, f'_global{name}') for name in HOOKS)
        return not hooked and all(type(layer) in (nn.Linear, nn.Conv2d) and 'forward' not in vars(layer) for layer in layers)


class InvertedResidual(nn.Module):
    """Feed-forward network with a depth-wise convolution between two activations (MobileNetV2, 1801.04381).

    Args:
        dims, hidden_dims: channels of input and output, and of the convolution.
        activation: takes a map ``(B, H, W, C)`` to one of its shape.
        kernel_size: of the convolution, odd.
        bias: whether the three layers have biases.
    """

    def __init__(self, dims: int, hidden_dims: int, activation: Callable, kernel_size: int = 3,
                 bias: bool = True):
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(dims, hidden_dims, bias)
        self.dwconv = nn.Conv2d(hidden_dims, hidden_dims, kernel_size, padding=kernel_size // 2, groups=hidden_dims, bias=bias)
        self.fc2 = nn.Linear(hidden_dims, dims, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        x = self.activation(self.fc1(x))
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.activation(x))
