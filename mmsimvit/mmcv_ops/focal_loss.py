"""Focal losses (Lin et al., ICCV 2017, arXiv 1708.02002)."""
import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.finite import widen
from .common import as_a_kernel

TINY = torch.finfo(torch.float32).tiny  # below which MMCV takes no logarithm, in float64 too


def scale_by_class(loss: Tensor, target: Tensor, weight: Tensor) -> None:
    """Multiply losses, ``(N, )`` or ``(N, C)``, by the weights of their classes, if there are any; the background has 1."""
    if weight.numel():
        with_background = F.pad(widen(weight), (0, 1), value=1)
        factors = with_background[torch.where(target < 0, len(weight), target)]
        loss *= factors.view(-1, *[1] * (loss.dim() - 1))


def pick_terms(positive: Tensor, negative: Tensor, target: Tensor, alpha: float) -> Tensor:
    """``(N, C)``: the positive terms at the targets' classes, the negative ones elsewhere, weighted and negated."""
    is_target = target[:, None] == torch.arange(positive.shape[1], device=target.device)
    return torch.where(is_target, -alpha * positive, (alpha - 1) * negative)


@as_a_kernel
def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Write the focal loss of each class on its own to ``output``.

    Args:
        input: logits, ``(N, C)``.
        target: classes, ``(N, )``; C stands for the background, of no class, and beyond it there is none.
        weight: of the classes, ``(C, )``, or empty.
        output: ``(N, C)``.
    """
    p = widen(input).sigmoid()
    q = 1 - p
    loss = pick_terms(q.pow(gamma) * p.clamp(TINY).log(), p.pow(gamma) * q.clamp(TINY).log(), target, alpha)
    scale_by_class(loss, target, weight)
    output.copy_(loss)


@as_a_kernel
def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Write the derivative of each loss by its logit to ``grad_input``, ``(N, C)``."""
    p = widen(input).sigmoid()
    q = 1 - p
    gradient = pick_terms(q.pow(gamma) * (q - gamma * p * p.clamp(TINY).log()),
                          p.pow(gamma) * (gamma * q * q.clamp(TINY).log() - p), target, alpha)
    scale_by_class(gradient, target, weight)
    grad_input.copy_(gradient)


def at_target(softmax: Tensor, target: Tensor) -> Tensor:
    """``(N, )``: the probabilities of the targets."""
    return widen(softmax).gather(1, target.clamp(0)[:, None])[:, 0]


@as_a_kernel
def softmax_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Write the focal loss of the targets' probabilities to ``output``.

    Args:
        input: probabilities, ``(N, C)``.
        target: classes, ``(N, )``; negative ones are ignored.
        weight: of the classes, ``(C, )``, or empty.
        output: ``(N, )``.
    """
    p = at_target(input, target)
    loss = -alpha * (1 - p).pow(gamma) * p.clamp(TINY).log()
    scale_by_class(loss, target, weight)
    output.copy_(loss.masked_fill(target < 0, 0))


@as_a_kernel
def softmax_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor,
                                gamma: float, alpha: float) -> None:
    """Write the derivatives of each loss by its logits to ``grad_input``, ``(N, C)``, with their common factors in ``buff``."""
    p = at_target(input, target)
    factor = alpha * (gamma * (1 - p).pow(gamma - 1) * p * p.clamp(TINY).log() - (1 - p).pow(gamma))
    scale_by_class(factor, target, weight)
    factor.masked_fill_(target < 0, 0)
    buff.copy_(factor)
    is_target = F.one_hot(target.clamp(0), input.shape[1])
    grad_input.copy_(factor[:, None] * (is_target - widen(input)))


OPERATORS = (sigmoid_focal_loss_forward, sigmoid_focal_loss_backward, softmax_focal_loss_forward, softmax_focal_loss_backward)
