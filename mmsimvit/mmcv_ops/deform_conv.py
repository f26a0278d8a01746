"""Deformable convolutions (Dai et al., ICCV 2017, arXiv 1703.06211; Zhu et al., CVPR 2019, arXiv 1811.11168)."""
import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  # brings its operators
from torch import Tensor

from ..ops.finite import split_finite, widen
from .common import as_a_kernel


def prepare(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """What torchvision takes: without 16 bits, contiguous, finite offsets, and a mask of shape (B, 1) if there is none."""
    if mask is None:
        mask = x.new_zeros(len(x), 1)
    return tuple(widen(y).contiguous() for y in (x, weight, split_finite(offset)[0], mask))


def convolve(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, sizes: tuple) -> Tensor:
    """A deformable convolution, ``(B, C_out, H', W')``, NaN where an offset is."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    y = torch.ops.torchvision.deform_conv2d(*prepare(x, weight, offset, mask), widen(bias), *sizes, mask is not None)
    return y.add_(split_finite(offset)[1].sum(1, keepdim=True))


def differentiate(grad_output: Tensor, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None,
                  sizes: tuple) -> tuple[Tensor, ...]:
    """Gradients of the input, the weight, the offsets, the mask and the bias, in their shapes.

    Where a tap lies exactly a pixel above or left of the map, the gradient of its offset is the one towards the map, and
    compiled MMCV's is zero. Both are right at such a kink.
    """
    return torch.ops.torchvision._deform_conv2d_backward(
        widen(grad_output).contiguous(), *prepare(x, weight, offset, mask), widen(weight.new_zeros(len(weight))), *sizes,
        mask is not None)


@as_a_kernel
def deform_conv_forward(input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor,
                        kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
                        group: int, deformable_group: int, im2col_step: int) -> None:
    """Write a deformable convolution of the first version, without bias, to ``output``.

    Args:
        input: ``(B, C_in, H, W)``.
        weight: ``(C_out, C_in / group, kH, kW)``.
        offset: ``(B, 2 deformable_group kH kW, H', W')``, down and right for each tap, in pixels.
        output: ``(B, C_out, H', W')``.
    """
    output.copy_(convolve(input, weight, offset, None, None,
                          (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)))


@as_a_kernel
def deform_conv_backward_input(input: Tensor, offset: Tensor, grad_output: Tensor, grad_input: Tensor, grad_offset: Tensor,
                               weight: Tensor, columns: Tensor, kW: int, kH: int, dW: int, dH: int, padW: int, padH: int,
                               dilationW: int, dilationH: int, group: int, deformable_group: int, im2col_step: int) -> None:
    """Write the gradients of the input and the offsets, in their shapes, and leave that of the weight in ``columns``."""
    of_input, of_weight, of_offset, *_ = differentiate(
        grad_output, input, weight, offset, None,
        (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group))
    grad_input.copy_(of_input)
    grad_offset.copy_(of_offset)
    # torchvision computes all gradients at once, MMCV asks for them one after the other, with this buffer between.
    columns.resize_(of_weight.shape).copy_(of_weight)


@as_a_kernel
def deform_conv_backward_parameters(input: Tensor, offset: Tensor, grad_output: Tensor, grad_weight: Tensor, columns: Tensor,
                                    ones: Tensor, kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int,
                                    dilationH: int, group: int, deformable_group: int, scale: float,
                                    im2col_step: int) -> None:
    """Write the gradient of the weight, in its shape; ``columns`` holds it if the input or the offsets had gradients, too."""
    if columns.numel() == 0:  # the weight's values do not enter its own gradient
        columns = differentiate(grad_output, input, torch.zeros_like(grad_weight), offset, None,
                                (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group))[1]
    grad_weight.copy_(columns)


def as_mmcv_reads(x: Tensor, output: Tensor) -> Tensor:
    """The first numbers of each image's offsets or mask, ``(B, channels, H', W')`` with the output's height and width.

    MMDetection's DyHead gives some layers those of a larger map. Compiled MMCV reads them so, and published weights have
    learnt it.
    """
    size = output.shape[2:]
    return x if x.shape[2:] == size else x.flatten(1)[:, :x.shape[1] * size.numel()].unflatten(1, (-1, *size))


@as_a_kernel
def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor,
                                  output: Tensor, columns: Tensor, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int,
                                  pad_h: int, pad_w: int, dilation_h: int, dilation_w: int, group: int,
                                  deformable_group: int, with_bias: bool) -> None:
    """Write a deformable convolution of the second version to ``output``.

    Args:
        input: ``(B, C_in, H, W)``.
        weight: ``(C_out, C_in / group, kernel_h, kernel_w)``.
        bias: ``(C_out, )``, or empty.
        offset: ``(B, 2 deformable_group kernel_h kernel_w, H', W')``, down and right for each tap, in pixels.
        mask: ``(B, deformable_group kernel_h kernel_w, H', W')``, factors of the taps.
        output: ``(B, C_out, H', W')``.
    """
    offset, mask = (as_mmcv_reads(x, output) for x in (offset, mask))
    output.copy_(convolve(input, weight, offset, mask, bias if with_bias else None,
                          (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)))


@as_a_kernel
def modulated_deform_conv_backward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor,
                                   columns: Tensor, grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor,
                                   grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor, kernel_h: int, kernel_w: int,
                                   stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int,
                                   group: int, deformable_group: int, with_bias: bool) -> None:
    """Write the gradients of ``modulated_deform_conv_forward``, in the shapes of its inputs."""
    offset, mask = (as_mmcv_reads(x, grad_output) for x in (offset, mask))
    found = differentiate(grad_output, input, weight, offset, mask,
                          (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group))
    for gradient, value in zip((grad_input, grad_weight, grad_offset, grad_mask), found):
        # Zeros for what of a larger map is not read; copied, for the gradient may be channels-last.
        gradient.copy_(F.pad(value.flatten(1), (0, gradient[0].numel() - value[0].numel())).view(gradient.shape))
    if with_bias:
        grad_bias.copy_(found[4])


OPERATORS = (deform_conv_forward, deform_conv_backward_input, deform_conv_backward_parameters, modulated_deform_conv_forward,
             modulated_deform_conv_backward)
