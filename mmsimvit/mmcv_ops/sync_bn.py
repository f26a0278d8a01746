"""The parts between which MMCV's synchronised batch norm (``MMSyncBN``) exchanges its statistics."""
from torch import Tensor


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """``(B, C, L)`` -> ``(C, )``."""
    mean.copy_(input.float().mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """``(B, C, L)`` -> the biased variances, ``(C, )``, about means that may be of more batches."""
    var.copy_((input.float() - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(input: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor,
                           running_var: Tensor, norm: Tensor, std: Tensor, output: Tensor, eps: float, momentum: Tensor,
                           group_size: int) -> None:
    """Normalise, and write ``norm`` and ``std`` for the backward pass and the running statistics.

    Args:
        input, norm, output: ``(B, C, L)``.
        mean, var, weight, bias, running_mean, running_var, std: ``(C, )``.
        momentum: of the running statistics; zero where all batches are empty.
        group_size: the number of processes, whose batches count for the unbiased variance.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = input.shape[0] * input.shape[2] * group_size
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * count / (count - 1) if count > 1 else var, momentum)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write the gradients of weight and bias, ``(C, )``."""
    grad_weight.copy_((grad_output * norm).sum((0, 2)))
    grad_bias.copy_(grad_output.float().sum((0, 2)))


def sync_bn_backward_data(grad_output: Tensor, weight: Tensor, grad_weight: Tensor, grad_bias: Tensor, norm: Tensor,
                          std: Tensor, grad_input: Tensor) -> None:
    """Write the gradient of the input, ``(B, C, L)``, from the processes' mean gradients of weight and bias."""
    count = grad_output.shape[0] * grad_output.shape[2]
    common = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_((weight / std)[:, None] * (grad_output - common))


OPERATORS = (sync_bn_forward_mean, sync_bn_forward_var, sync_bn_forward_output, sync_bn_backward_param, sync_bn_backward_data)
