from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .drop_path import DropPath


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Going Deeper with Image Transformers, 2103.17239).

    Args:
        dims: channels.
        init_value: of all factors.
    """

    def __init__(self, dims: int, init_value: float):
        super().__init__()
        self.init_value = init_value
        self.gamma = nn.Parameter(torch.empty(dims))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all factors to ``init_value``."""
        nn.init.constant_(self.gamma, self.init_value)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        return x * self.gamma


class Block(nn.Module):
    """Attention, if there is any, and FFN, each normalised before and added to its input.

    Args:
        attn: takes ``(B, H, W, C)``, or tokens, and what else the block is called with; None for a block without attention.
        ffn: takes ``(B, H, W, C)``.
        dims: channels.
        drop_path: rate of both branches.
        eps: of the norms.
        layer_scale: initial value of the factors on both branches, None for no factors.
    """

    def __init__(self, attn: nn.Module | None, ffn: nn.Module, dims: int, drop_path: float, eps: float,
                 layer_scale: float | None = None):
        super().__init__()
        if attn is not None:
            self.norm1 = nn.LayerNorm(dims, eps=eps)
            self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dims, layer_scale)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dims, eps=eps)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dims, layer_scale)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, *context: Tensor | int) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        if self.attn is not None:
            x = x + self.drop_path(self.scale1(self.attn(self.norm1(x), *context)))
        return x + self.drop_path(self.scale2(self.ffn(self.norm2(x))))


class Stage(nn.Module):
    """Patch embedding and blocks.

    Args:
        patch_embed: takes the previous stage's ``(B, C_in, H, W)`` to ``(B, H', W', C)``.
        blocks: take ``(B, H', W', C)`` to the same.
        with_cp: recompute each block in the backward pass.
    """

    def __init__(self, patch_embed: nn.Module, blocks: Sequence[nn.Module], with_cp: bool):
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.register_module('norm', None)  # of the map, which the backbone sets
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, H', W')``, channels last in memory."""
        x = self.patch_embed(x)
        for block in self.blocks:
            x = self.run_block(block, x)
        return x.permute(0, 3, 1, 2)

    def run_block(self, block: nn.Module, x: Tensor, *context: Any) -> Tensor:
        """``block(x, *context)``, of the shape of ``x``, recomputed in the backward pass if the stage is to."""
        return run_block(block, self.with_cp, x, *context)


def run_block(block: nn.Module, with_cp: bool, x: Tensor, *context: Any) -> Tensor:
    """``block(x, *context)``, of the shape of ``x``, recomputed in the backward pass if ``with_cp``."""
    if not with_cp or not torch.is_grad_enabled():
        return block(x, *context)
    return recompute(block, block, x, *context)


def recompute(function: Callable, module: nn.Module, *args: Any) -> Any:
    """``function(*args)``, which runs ``module`` or parts of it, computed again in the backward pass."""
    norms = [module for module in module.modules() if hasattr(module, 'running_mean')]  # of torch, MMCV ...
    if not norms or torch.compiler.is_compiling():  # whose checkpoints take no such contexts
        return checkpoint(function, *args, use_reentrant=False)
    return checkpoint(function, *args, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), WithoutStatistics(norms)))


class WithoutStatistics:
    """Lets batch norms write their running statistics on copies: they have seen what is computed again.

    It is entered once more for each further derivative, which a context of a generator could not be.
    """

    def __init__(self, norms: list[nn.Module]):
        self.norms = norms
        self.kept: list[dict] = []

    def __enter__(self) -> None:
        self.kept = [dict(norm._buffers) for norm in self.norms]
        for norm in self.norms:
            norm._buffers.update({name: buffer.clone() for name, buffer in norm._buffers.items() if buffer is not None})

    def __exit__(self, *error: object) -> None:
        for norm, buffers in zip(self.norms, self.kept):
            norm._buffers.update(buffers)
