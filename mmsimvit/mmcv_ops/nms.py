"""Overlaps of boxes, and the three ways of suppressing those that overlap."""
import numpy as np
import torch
import torchvision
from torch import Tensor

from ..ops.finite import widen
from .common import as_a_kernel


@as_a_kernel
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that no box of a higher score overlaps by more than the threshold, by falling score.

    Args:
        boxes: ``(N, 4)``, as ``x1, y1, x2, y2``.
        scores: ``(N, )``.
        iou_threshold: in [0, 1].
        offset: what is added to widths and heights, 0 or 1.
    """
    boxes, scores = widen(boxes), widen(scores)
    common = torch.promote_types(boxes.dtype, scores.dtype)
    boxes, scores = boxes.to(common), scores.to(common)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # MMCV compares with the threshold as a number of the boxes' type, torchvision with float64's: 0.1 is less than float32's.
    return torchvision.ops.nms(boxes, scores, torch.tensor(iou_threshold, dtype=boxes.dtype).item())


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int,
            offset: int) -> Tensor:
    """Soft-NMS (Bodla et al., ICCV 2017, arXiv 1704.04503): the scores of boxes that overlap fall.

    Args:
        boxes: ``(N, 4)`` on the CPU.
        scores: ``(N, )``.
        dets: ``(N, 5)``, into whose first rows the boxes that are left are written, with their new scores.
        iou_threshold: from which on methods 0 and 1 change a score.
        sigma: of method 2.
        min_score: boxes of lower scores are taken out.
        method: 0 takes boxes out, 1 multiplies scores by one minus the overlap, 2 by ``exp(-overlap ** 2 / sigma)``.
        offset: what is added to widths and heights, 0 or 1.

    Returns:
        The indices of the boxes that are left, ``(M, )``.
    """
    rows = torch.cat([widen(boxes), widen(scores)[:, None]], 1).numpy()
    x1, y1, x2, y2, score = rows.T  # views, so that a change of order moves them all
    one, threshold = rows.dtype.type(1), rows.dtype.type(iou_threshold)
    indices = np.arange(len(rows))
    index, left = 0, len(rows)
    while index < left:
        best = index + int(np.where(np.isnan(score[index:left]), -np.inf, score[index:left]).argmax())
        for array in (rows, indices):
            array[[index, best]] = array[[best, index]]
        rest = slice(index + 1, left)
        width = np.minimum(x2[index], x2[rest]) - np.maximum(x1[index], x1[rest]) + offset
        height = np.minimum(y2[index], y2[rest]) - np.maximum(y1[index], y1[rest]) + offset
        areas = (x2[index:left] - x1[index:left] + offset) * (y2[index:left] - y1[index:left] + offset)
        shared = width.clip(0) * height.clip(0)
        united = areas[0] + areas[1:] - shared
        overlap = np.divide(shared, united, out=np.zeros_like(shared), where=united != 0)
        if method == 2:
            score[rest] *= np.exp(-(overlap * overlap) / rows.dtype.type(sigma))
        else:
            score[rest] *= np.where(overlap >= threshold, one - overlap if method == 1 else one - one, one)
        # As in MMCV, the place of a box that is taken out goes to the last one that stays; order decides between equal scores.
        stays = ~(score[rest] < min_score)
        end = index + 1 + int(stays.sum())
        places = np.flatnonzero(~stays[:end - index - 1]) + index + 1
        movers = (np.flatnonzero(stays[end - index - 1:]) + end)[::-1]
        for array in (rows, indices):
            array[places] = array[movers]
        index, left = index + 1, end
    dets[:left] = torch.from_numpy(rows[:left])
    return torch.from_numpy(indices[:left])


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes: one that NMS keeps, by falling score, and after it those that it suppresses.

    Args:
        dets: ``(N, 5)`` on the CPU, boxes and scores.
        iou_threshold: from which on a box is suppressed.
    """
    boxes, scores = widen(dets[:, :4]), dets[:, 4]
    order = scores.argsort(descending=True, stable=True)
    threshold = boxes.new_tensor(iou_threshold)
    groups = []
    while len(order):
        first, rest = order[:1], order[1:]
        suppressed = overlaps(boxes[first], boxes[rest], 0)[0] >= threshold
        groups.append([*first.tolist(), *rest[suppressed].tolist()])
        order = rest[~suppressed]
    return groups


def overlaps(boxes1: Tensor, boxes2: Tensor, offset: int, mode: int = 0) -> Tensor:
    """``(..., M, 4)`` and ``(..., N, 4)`` -> ``(..., M, N)``: intersection over union, or of mode 1 over the first's area."""
    first, second = boxes1[..., :, None, :], boxes2[..., None, :, :]
    sides = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2]) + offset).clamp(0)
    area1, area2 = ((boxes[..., 2:] - boxes[..., :2] + offset).prod(-1) for boxes in (first, second))
    shared = sides.prod(-1)
    return shared / (area1 if mode else area1 + area2 - shared)


@as_a_kernel
def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Overlaps of boxes.

    Args:
        bboxes1, bboxes2: ``(M, 4)`` and ``(N, 4)``.
        ious: written to; ``(M, N)``, or where they are aligned ``(M, )``.
        mode: 0 for intersection over union, 1 for intersection over the first box's area.
        aligned: whether boxes are compared in pairs.
        offset: what is added to widths and heights, 0 or 1.
    """
    boxes1, boxes2 = widen(bboxes1), widen(bboxes2)
    if aligned:
        ious.copy_(overlaps(boxes1[:, None], boxes2[:, None], offset, mode)[:, 0, 0])
    else:
        ious.copy_(overlaps(boxes1, boxes2, offset, mode))


OPERATORS = nms, softnms, nms_match, bbox_overlaps
