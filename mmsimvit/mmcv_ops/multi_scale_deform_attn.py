"""Multi-scale deformable attention (Zhu et al., ICLR 2021, arXiv 2010.04159), by MMCV's own plain form.

On a CPU, MMCV calls that by itself; these are for CUDA devices.
"""
from torch import Tensor

from ..ops.finite import split_finite, widen
from .common import as_a_kernel, gradients


def attend(value: Tensor, shapes: list[list[int]], locations: Tensor, weights: Tensor) -> Tensor:
    """``(B, keys, heads, C)`` -> ``(B, queries, heads C)``, NaN where a location is."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
    locations, marks = split_finite(locations)
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights) + marks.sum((2, 3, 4, 5))[..., None]


@as_a_kernel
def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                           sampling_locations: Tensor, attention_weights: Tensor, im2col_step: int) -> Tensor:
    """Each query's weighted sum of values at its locations.

    Args:
        value: ``(B, keys, heads, C)``, the keys of all levels one after the other.
        value_spatial_shapes: ``(levels, 2)``, height and width.
        value_level_start_index: not needed.
        sampling_locations: ``(B, queries, heads, levels, points, 2)``, as x and y in [0, 1].
        attention_weights: ``(B, queries, heads, levels, points)``.
        im2col_step: not needed.

    Returns:
        ``(B, queries, heads C)``.
    """
    out = attend(widen(value), value_spatial_shapes.tolist(), sampling_locations, widen(attention_weights))
    return out.to(value.dtype)


@as_a_kernel
def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                            sampling_locations: Tensor, attention_weights: Tensor, grad_output: Tensor, grad_value: Tensor,
                            grad_sampling_loc: Tensor, grad_attn_weight: Tensor, im2col_step: int) -> None:
    """Write the gradients of ``ms_deform_attn_forward``, in the shapes of its inputs."""
    shapes = value_spatial_shapes.tolist()
    found = gradients(lambda value, locations, weights: attend(value, shapes, locations, weights),
                      (value, sampling_locations, attention_weights), grad_output)
    for gradient, written in zip(found, (grad_value, grad_sampling_loc, grad_attn_weight)):
        written.copy_(gradient)


OPERATORS = ms_deform_attn_forward, ms_deform_attn_backward
