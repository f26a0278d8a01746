"""Which positions of a map are worth the whole computation (DynamicViT, 2106.02034, and its journal form, 2207.01580)."""
from collections.abc import Sequence
from math import trunc
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.backends import is_exporting


class Gate(nn.Module):
    """The hard decision between two log-probabilities, with the gradient of a soft one (straight-through Gumbel-softmax,
    1611.01144, of temperature 1).

    The difference of two Gumbel variables is a logistic one, of which one draw for each position is enough.

    Attributes:
        noise: whether a decision is drawn; if not, the larger probability wins.
    """

    noise = True

    def forward(self, log_probs: Tensor) -> Tensor:
        """Log-probabilities of keeping and dropping, ``(B, N, 2)`` -> ``(B, N)``, 1 where kept and 0 where not."""
        margin = log_probs[..., 0] - log_probs[..., 1]
        if self.noise:
            margin = margin + torch.rand_like(margin, dtype=torch.float32).logit(1e-6).to(margin.dtype)
        soft = margin.sigmoid()
        return (margin >= 0).to(soft.dtype) + (soft - soft.detach())  # exactly 0 or 1


class ImportancePredictor(nn.Module):
    """The probability that a position is kept, from its features and their mean over all positions.

    Args:
        dims: channels, a multiple of 4.
        eps: of the norm.

    Attributes:
        gate: what makes decisions of its log-probabilities in training.
    """

    def __init__(self, dims: int, eps: float):
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(dims, eps=eps), nn.Linear(dims, dims), nn.GELU())
        self.out_conv = nn.Sequential(nn.Linear(dims, dims // 2), nn.GELU(), nn.Linear(dims // 2, dims // 4), nn.GELU(),
                                      nn.Linear(dims // 4, 2))
        self.gate = Gate()

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        """Log-probabilities of keeping and dropping.

        Args:
            x: ``(B, N, C)``.
            policy: ``(B, N)``, 1 for positions that the mean is over and 0 for others; None for all.

        Returns:
            ``(B, N, 2)``, in float32 at least.
        """
        local, shared = self.in_conv(x).chunk(2, -1)
        if policy is None:
            shared = shared.mean(1, keepdim=True)
        else:
            policy = policy[..., None].to(shared.dtype)
            shared = (shared * policy).sum(1, keepdim=True) / policy.sum(1, keepdim=True).clamp(min=1)  # none may be left
        logits = self.out_conv(torch.cat([local, shared.expand_as(local)], -1))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)  # not so by itself on a CPU


def ratio_loss(decisions: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    """How far the kept parts are from those wanted: the mean square over predictors and images, a scalar.

    Args:
        decisions: of each predictor, ``(B, N)``, 1 for kept and 0 for other positions.
        ratios: of each, what part shall be kept.
    """
    kept = torch.stack([decision.mean(1) for decision in decisions], 1)
    return (kept - kept.new_tensor(ratios)).square().mean()


def check_ratios(ratios: Sequence, count: int) -> tuple[float, ...]:
    """The ratios of ``count`` predictors, as a tuple.

    Raises:
        ValueError: for another number of them, or one that is not in (0, 1].
    """
    if len(ratios) != count or not all(isinstance(ratio, Real) and 0 < float(ratio) <= 1 for ratio in ratios):
        raise ValueError(f'keep_ratios must be {count} numbers above 0 and up to 1, one for each predictor, got {ratios!r}')
    return tuple(float(ratio) for ratio in ratios)


def count_kept(number: int, ratio: float) -> int:
    """How many of so many positions are kept: the product in double precision, rounded down, as published."""
    if not is_exporting():
        return trunc(number * ratio)  # int() would fix the number that a trace has a symbol for
    # ONNX has no product of a length and a number in double precision, but of tensors.
    product = torch.full((1, ), number, dtype=torch.float64) * torch.tensor([ratio], dtype=torch.float64)
    count: Any = product.long().item()
    torch._check(count >= 0)
    torch._check(count <= number)
    return count
