"""Reassembly of features (CARAFE, Wang et al., ICCV 2019, arXiv 1905.02188), and convolutions at some pixels alone."""
import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.finite import widen
from .common import as_a_kernel, gradients


def reassemble(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Each pixel of the result is a weighted sum of the window around the pixel that it lies in.

    Args:
        features: ``(B, C, H, W)``.
        masks: weights, ``(B, group_size kernel_size ** 2, scale_factor H, scale_factor W)``.
        kernel_size: of the windows, odd; beyond the borders are zeros.
        group_size: the number of groups of channels, each with weights of its own.
        scale_factor: by how much height and width grow.

    Returns:
        ``(B, C, scale_factor H, scale_factor W)``.
    """
    batch, channels, height, width = features.shape
    taps, factor, pixels = kernel_size ** 2, scale_factor, height * width
    windows = F.unfold(features, kernel_size, padding=kernel_size // 2)
    windows = windows.view(batch, group_size, channels // group_size, taps, pixels).permute(0, 1, 4, 2, 3)
    weights = masks.view(batch, group_size, taps, height, factor, width, factor).permute(0, 1, 3, 5, 2, 4, 6)
    out = windows @ weights.reshape(batch, group_size, pixels, taps, factor ** 2)
    out = out.view(batch, group_size, height, width, channels // group_size, factor, factor).permute(0, 1, 4, 2, 5, 3, 6)
    return out.reshape(batch, channels, height * factor, width * factor)


@as_a_kernel
def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor, **sizes: int) -> None:
    """Write ``reassemble(features, masks, **sizes)`` to ``output``, in the shape that it says."""
    output.copy_(reassemble(widen(features), widen(masks), **sizes))


@as_a_kernel
def carafe_naive_backward(grad_output: Tensor, features: Tensor, masks: Tensor, grad_input: Tensor, grad_masks: Tensor,
                          **sizes: int) -> None:
    """Write the gradients of ``reassemble``, in the shapes of its inputs."""
    found = gradients(lambda features, masks: reassemble(features, masks, **sizes), (features, masks), grad_output)
    grad_input.copy_(found[0])
    grad_masks.copy_(found[1])


def carafe_forward(features: Tensor, masks: Tensor, rfeatures: Tensor, routput: Tensor, rmasks: Tensor, output: Tensor,
                   **sizes: int) -> None:
    """Write ``reassemble(features, masks, **sizes)`` to ``output``, and the features, in their shape, to ``rfeatures``, which
    is all that MMCV keeps for the backward pass."""
    carafe_naive_forward(features, masks, output, **sizes)
    rfeatures.copy_(features)


def carafe_backward(grad_output: Tensor, rfeatures: Tensor, masks: Tensor, rgrad_output: Tensor, rgrad_input_hs: Tensor,
                    rgrad_input: Tensor, rgrad_masks: Tensor, grad_input: Tensor, grad_masks: Tensor, **sizes: int) -> None:
    """Write the gradients of ``carafe_forward``, in the shapes of its inputs."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, **sizes)


def masked_im2col_forward(im: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, col: Tensor, kernel_h: int, kernel_w: int,
                          pad_h: int, pad_w: int) -> None:
    """Write the windows of some pixels to ``col``.

    Args:
        im: ``(1, C, H, W)``.
        mask_h_idx, mask_w_idx: the pixels' rows and columns, ``(M, )``.
        col: ``(C kernel_h kernel_w, M)``.
    """
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    taps = [padded[:, mask_h_idx + row, mask_w_idx + column] for row in range(kernel_h) for column in range(kernel_w)]
    col.copy_(torch.stack(taps, 1).flatten(0, 1))


def masked_col2im_forward(col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int,
                          channels: int) -> None:
    """Write ``(C, M)`` to the pixels ``(M, )`` of ``(1, C, H, W)``."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)


OPERATORS = (carafe_naive_forward, carafe_naive_backward, carafe_forward, carafe_backward, masked_im2col_forward,
             masked_col2im_forward)
