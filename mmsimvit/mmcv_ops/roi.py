"""Pooling of regions of interest: RoIAlign (He et al., ICCV 2017, arXiv 1703.06870), RoIPool (Girshick, ICCV 2015, arXiv
1504.08083) and deformable RoI pooling (Dai et al., ICCV 2017, arXiv 1703.06211).

RoIs are ``(N, 5)``: the image's index in the batch, and ``x1, y1, x2, y2`` in pixels of the image, ``spatial_scale`` times
which are pixels of the map. What is pooled of an RoI that is not finite is NaN.
"""
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from ..ops.finite import widen
from .common import as_a_kernel, gradients

MAX, AVERAGE = 0, 1  # of MMCV's pool_mode


def mend(rois: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """RoIs that torchvision can take, of a type; and which of them, ``(N, )``, were not finite and are now of no size.

    An RoI whose second corner lies before its first is of no size, too; compiled MMCV refuses it on a CPU.
    """
    rois = rois.to(dtype)
    is_bad = ~rois.isfinite().all(1)
    first, second = rois[:, 1:3], rois[:, 3:]
    rois = torch.cat([rois[:, :1], first, torch.maximum(first, second)], 1)
    return rois.masked_fill(is_bad[:, None], 0), is_bad


def write_nan(output: Tensor, is_bad: Tensor) -> None:
    """To what is pooled of some RoIs, ``(N, C, rows, columns)``."""
    output.masked_fill_(is_bad[:, None, None, None], torch.nan)


@as_a_kernel
def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, aligned_height: int,
                      aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool) -> None:
    """Write the mean or the greatest of each bin's samples to ``output``.

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(N, 5)``.
        output: ``(N, C, aligned_height, aligned_width)``.
        argmax_y, argmax_x: of the output's shape; for the greatest, its row and column among the bin's samples.
        sampling_ratio: samples of a bin along each side; 0 takes as many as the bin has pixels, rounded up.
        pool_mode: ``MAX`` or ``AVERAGE``.
        aligned: whether pixel centres lie at halves.
    """
    boxes, is_bad = mend(rois, widen(input).dtype)
    size = aligned_height, aligned_width
    if pool_mode == AVERAGE:
        output.copy_(torchvision.ops.roi_align(widen(input), boxes, size, spatial_scale, sampling_ratio, aligned))
    else:
        output.fill_(-10000)  # as MMCV has it, for bins without samples
        for chosen, samples in each_grid(boxes, size, spatial_scale, sampling_ratio, aligned):
            best, place = samples.of(widen(input), boxes[chosen]).flatten(-2).max(-1)
            output[chosen] = best.to(output.dtype)
            argmax_y[chosen] = (place // samples.columns).to(output.dtype)
            argmax_x[chosen] = (place % samples.columns).to(output.dtype)
    write_nan(output, is_bad)


@as_a_kernel
def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int,
                       aligned: bool) -> None:
    """Add the gradient of ``roi_align_forward`` to zeros, ``(B, C, H, W)``."""
    grad, size = widen(grad_output), (aligned_height, aligned_width)
    boxes, _ = mend(rois, grad.dtype)
    if pool_mode == AVERAGE:
        grad_input.copy_(torch.ops.torchvision._roi_align_backward(
            grad, boxes, spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned))
        return
    of_map = torch.zeros_like(widen(grad_input))
    for chosen, samples in each_grid(boxes, size, spatial_scale, sampling_ratio, aligned):
        # Samples are linear in the map, so that zeros do for it.
        place = (argmax_y[chosen] * samples.columns + argmax_x[chosen]).long()
        of_samples = grad.new_zeros(*place.shape, samples.rows * samples.columns)
        of_samples.scatter_(-1, place[..., None], grad[chosen][..., None])
        of_map += gradients(partial(samples.of, rois=boxes[chosen]), [torch.zeros_like(of_map)],
                            of_samples.unflatten(-1, (samples.rows, samples.columns)))[0]
    grad_input.copy_(of_map)


class Samples:
    """Where the bins of RoIs are sampled that have equally many samples in each bin.

    Args:
        size: the number of bins along height and width.
        rows, columns: samples of a bin.
        spatial_scale: pixels of the map for one of the image.
        aligned: whether pixel centres lie at halves.
    """

    def __init__(self, size: tuple[int, int], rows: int, columns: int, spatial_scale: float, aligned: bool):
        self.size = size
        self.rows = rows
        self.columns = columns
        self.spatial_scale = spatial_scale
        self.aligned = aligned

    def of(self, x: Tensor, rois: Tensor, shift: Tensor | None = None) -> Tensor:
        """Bilinear samples of a map.

        Args:
            x: ``(B, C, H, W)``.
            rois: ``(N, 5)``, finite.
            shift: of each bin, in widths and heights of the RoI, ``(N, 2, *size)``, right and down.

        Returns:
            ``(N, C, *size, rows, columns)``; zeros for samples that lie more than a pixel outside.
        """
        height, width = x.shape[2:]
        x1, y1, box_width, box_height = bounds(rois, self.spatial_scale, self.aligned)
        bins_y, bins_x = self.size
        y = self._along(y1, box_height, bins_y, self.rows)[:, :, None, :, None]
        x_ = self._along(x1, box_width, bins_x, self.columns)[:, None, :, None, :]
        if shift is not None:
            x_ = x_ + (shift[:, 0] * box_width[:, None, None])[..., None, None]
            y = y + (shift[:, 1] * box_height[:, None, None])[..., None, None]
        y, x_ = torch.broadcast_tensors(y, x_)
        is_inside = (y >= -1) & (y <= height) & (x_ >= -1) & (x_ <= width)
        # grid_sample's coordinates, -1 and 1 at the map's outer borders, which go on with the pixels beside them.
        grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], -1).flatten(1, -2)
        samples = x.new_zeros(len(rois), x.shape[1], grid.shape[1])
        for image in rois[:, 0].unique().tolist():
            chosen = (rois[:, 0] == image).nonzero()[:, 0]
            found = F.grid_sample(x[int(image)][None], grid[chosen].flatten(0, 1)[None, :, None], padding_mode='border',
                                  align_corners=False)
            samples = samples.index_copy(0, chosen, found.view(x.shape[1], len(chosen), -1).transpose(0, 1))
        return samples.view(*samples.shape[:2], *y.shape[1:]) * is_inside[:, None]

    @staticmethod
    def _along(start: Tensor, length: Tensor, bins: int, samples: int) -> Tensor:
        """Coordinates along one side, ``(N, bins, samples)``."""
        index = torch.arange(bins * samples, device=start.device, dtype=start.dtype)
        return (start[:, None] + (index + 0.5) * (length / (bins * samples))[:, None]).view(-1, bins, samples)


def bounds(rois: Tensor, spatial_scale: float, aligned: bool) -> tuple[Tensor, ...]:
    """Left, top, width and height of RoIs in pixels of the map, each ``(N, )``; where not aligned, of a pixel at least."""
    x1, y1, x2, y2 = (rois[:, 1:] * spatial_scale - (0.5 if aligned else 0)).unbind(1)
    lengths = x2 - x1, y2 - y1
    return x1, y1, *(length if aligned else length.clamp(min=1) for length in lengths)


def each_grid(rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int,
              aligned: bool) -> Iterator[tuple[Tensor, Samples]]:
    """The indices, ``(M, )``, of RoIs that have equally many samples in each bin, and their samples; without those that have
    none."""
    *_, width, height = bounds(rois, spatial_scale, aligned)
    lengths = torch.stack([height, width], 1)
    grids = (lengths / lengths.new_tensor(size)).ceil().long()
    if sampling_ratio > 0:
        grids.fill_(sampling_ratio)
    for grid in grids.unique(dim=0):
        rows, columns = grid.tolist()
        if rows > 0 and columns > 0:
            yield (grids == grid).all(1).nonzero()[:, 0], Samples(size, rows, columns, spatial_scale, aligned)


@as_a_kernel
def roi_pool_forward(input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int, pooled_width: int,
                     spatial_scale: float) -> None:
    """Write the greatest pixel of each bin to ``output``.

    MMCV's bins are not torchvision's: bounds are rounded for each bin, not for the RoI, whose last pixel is added before it
    is scaled. Each bin is a step of its own, which is slow; MMDetection's detectors take RoIAlign.

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(N, 5)``.
        output: zeros, ``(N, C, pooled_height, pooled_width)``.
        argmax: of the output's shape; the pixel's index in the map, -1 for bins that hold none.
    """
    height, width = input.shape[2:]
    boxes, is_bad = mend(rois, widen(input).dtype)
    x1, y1 = (boxes[:, 1:3] * spatial_scale).unbind(1)
    x2, y2 = ((boxes[:, 3:] + 1) * spatial_scale).unbind(1)
    argmax.fill_(-1)

    def bins(start: Tensor, end: Tensor, count: int, limit: int) -> tuple[list, list]:
        steps = torch.arange(count + 1, device=start.device) * ((end - start) / count)[:, None] + start[:, None]
        return (steps[:, :-1].floor().clamp(0, limit).int().tolist(), steps[:, 1:].ceil().clamp(0, limit).int().tolist())

    tops, bottoms = bins(y1, y2, pooled_height, height)
    lefts, rights = bins(x1, x2, pooled_width, width)
    is_proper = (rois[:, 3:] + 1 > rois[:, 1:3]).all(1).tolist()
    for index, image in enumerate(boxes[:, 0].int().tolist()):
        for row, (top, bottom) in enumerate(zip(tops[index], bottoms[index])):
            for column, (left, right) in enumerate(zip(lefts[index], rights[index])):
                if is_proper[index] and bottom > top and right > left:
                    best, place = input[image, :, top:bottom, left:right].flatten(1).max(1)
                    output[index, :, row, column] = best
                    argmax[index, :, row, column] = ((top + place // (right - left)) * width + left + place % (right - left))
    write_nan(output, is_bad)


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int,
                      pooled_width: int, spatial_scale: float) -> None:
    """Add the gradient of ``roi_pool_forward`` to zeros, ``(B, C, H, W)``."""
    of_map = torch.zeros_like(widen(grad_input)).flatten(2)
    is_there = (argmax >= 0).flatten(2)
    for index, image in enumerate(rois[:, 0].nan_to_num().int().tolist()):
        of_map[image].scatter_add_(1, argmax[index].flatten(1).clamp(0).long(),
                                   widen(grad_output[index]).flatten(1) * is_there[index])
    grad_input.copy_(of_map.view_as(grad_input))


def pool_deformed(x: Tensor, offset: Tensor, rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int,
                  gamma: float) -> Tensor:
    """The mean of each bin's samples, ``(N, C, *size)``, the bins moved by ``gamma`` times the offset, in widths and heights of
    the RoI."""
    out = x.new_zeros(len(rois), x.shape[1], *size)
    for chosen, samples in each_grid(rois, size, spatial_scale, sampling_ratio, True):
        shift = gamma * offset[chosen] if offset.numel() else None
        out = out.index_copy(0, chosen, samples.of(x, rois[chosen], shift).mean((-2, -1)))
    return out


@as_a_kernel
def deform_roi_pool_forward(input: Tensor, rois: Tensor, offset: Tensor, output: Tensor, pooled_height: int,
                            pooled_width: int, spatial_scale: float, sampling_ratio: int, gamma: float) -> None:
    """Write deformable RoI pooling to ``output``.

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(N, 5)``.
        offset: ``(N, 2, pooled_height, pooled_width)``, right and down, or empty.
        output: ``(N, C, pooled_height, pooled_width)``.
        gamma: the factor of the offsets.
    """
    boxes, is_bad = mend(rois, widen(input).dtype)
    output.copy_(pool_deformed(widen(input), widen(offset.nan_to_num()), boxes, (pooled_height, pooled_width), spatial_scale,
                               sampling_ratio, gamma))
    write_nan(output, is_bad)
    if offset.numel():
        write_nan(output, offset.isnan().flatten(1).any(1))


@as_a_kernel
def deform_roi_pool_backward(grad_output: Tensor, input: Tensor, rois: Tensor, offset: Tensor, grad_input: Tensor,
                             grad_offset: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float,
                             sampling_ratio: int, gamma: float) -> None:
    """Write the gradients of ``deform_roi_pool_forward``, in the shapes of its inputs."""
    boxes, _ = mend(rois, widen(input).dtype)
    pool = partial(pool_deformed, rois=boxes, size=(pooled_height, pooled_width), spatial_scale=spatial_scale,
                   sampling_ratio=sampling_ratio, gamma=gamma)
    if offset.numel():
        of_map, of_offset = gradients(pool, (input, offset.nan_to_num()), grad_output)
        grad_offset.copy_(of_offset)
    else:
        of_map, = gradients(lambda x: pool(x, offset), (input, ), grad_output)
    grad_input.copy_(of_map)


OPERATORS = (roi_align_forward, roi_align_backward, roi_pool_forward, roi_pool_backward, deform_roi_pool_forward,
             deform_roi_pool_backward)
