"""What is kept of each validation image, and the scores that it gives: of all images, or of any draw of them."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from PIL import Image
from torch import Tensor

from ..files import atomic_write
from .statistics import Measure, Records

BINS = 15  # of confidences, as Guo et al. have them
BOUNDARY = 0.02  # of the image's diagonal: how wide a boundary is


def load_records(path: str | Path) -> Records:
    """What a metric wrote of each image."""
    with np.load(path) as content:
        return {name: content[name] for name in content.files}


def save_records(path: str | Path, records: Records) -> None:
    """Write what a metric keeps of each image."""
    def write(unfinished: Path) -> None:
        with open(unfinished, 'wb') as file:
            np.savez_compressed(file, **records)  # type: ignore[arg-type]

    atomic_write(path, write)


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask, ``(H, W)`` bool, that are less than ``width`` steps away from what is outside of it; beyond the
    image is outside."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & (inner == 0)


def segmentation_record(predicted: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, num_classes: int,
                        ignore_index: int = 255) -> dict[str, np.ndarray]:
    """What is kept of an image; sums of it over images give all scores of ``SEGMENTATION``.

    Args:
        predicted: classes, ``(H, W)``.
        labels: the annotated ones, ``(H, W)``.
        probabilities: of the predicted class at each pixel, ``(H, W)``.
        num_classes: K.
        ignore_index: of pixels that count for nothing.

    Returns:
        Pixels of each class, ``(K,)``: ``both`` predicted and annotated, ``predicted``, ``annotated``; on boundaries,
        ``boundary_both`` and ``boundary_any``. ``objects``, the annotated 8-connected components of each class, and ``found``,
        the sum over them of the share of pixels that was predicted, ``(K,)``. ``confidence``, ``(3, BINS)``: pixels in each
        bin, the sum of their probabilities, and how many are right.
    """
    known = labels != ignore_index
    predicted = np.where(known, predicted, ignore_index)
    right = (predicted == labels) & known
    counts = {name: np.bincount(values[mask].astype(np.int64), minlength=num_classes)[:num_classes] for name, values, mask in (
        ('both', labels, right), ('predicted', predicted, known), ('annotated', labels, known))}
    record: dict[str, np.ndarray] = dict(counts)
    for name in ('boundary_both', 'boundary_any', 'objects'):
        record[name] = np.zeros(num_classes, np.int64)
    record['found'] = np.zeros(num_classes)
    width = max(1, round(BOUNDARY * float(np.hypot(*labels.shape))))
    for number in np.flatnonzero(counts['predicted'] + counts['annotated']):
        edges = [boundary(values == number, width) for values in (predicted, labels)]
        record['boundary_both'][number] = (edges[0] & edges[1]).sum()
        record['boundary_any'][number] = (edges[0] | edges[1]).sum()
        count, objects = cv2.connectedComponents((labels == number).astype(np.uint8), connectivity=8)  # 0 is what is none
        if count > 1:
            sizes = np.bincount(objects.ravel(), minlength=count)[1:]
            hits = np.bincount(objects[right].ravel(), minlength=count)[1:]
            record['objects'][number], record['found'][number] = count - 1, (hits / sizes).sum()
    bins = np.minimum((probabilities[known] * BINS).astype(np.int64), BINS - 1)
    record['confidence'] = np.stack([np.bincount(bins, weights=weights, minlength=BINS) for weights in (
        np.ones(len(bins)), probabilities[known], right[known])])
    return record


@METRICS.register_module()
class SegmentationRecords(BaseMetric):
    """A segmentor's scores, and for each image what they are made of.

    Args:
        out_file: the npz file that gets ``segmentation_record`` of all images, their paths in ``image``.
        prediction_dir: a folder for the predicted and the annotated classes of each image, as PNG; None for none.
        ignore_index: of pixels that count for nothing.
    """

    default_prefix = None

    def __init__(self, out_file: str, prediction_dir: str | None = None, ignore_index: int = 255) -> None:
        super().__init__()
        self.out_file, self.prediction_dir, self.ignore_index = out_file, prediction_dir, ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep what is needed of a batch's predictions."""
        classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            labels = sample['gt_sem_seg']['data'].squeeze(0).cpu().numpy()
            predicted = sample['pred_sem_seg']['data'].squeeze(0).cpu().numpy()
            probabilities = _confidence(sample['seg_logits']['data'])
            record = segmentation_record(predicted, labels, probabilities, classes, self.ignore_index)
            self.results.append({**record, 'image': np.array(sample['img_path'])})
            if self.prediction_dir is not None:
                path = Path(self.prediction_dir, f'{len(self.results) - 1:06d}.png')
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(predicted.astype(np.uint8)).save(path)
                Image.fromarray(labels.astype(np.uint8)).save(path.with_suffix('.labels.png'))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Write what was kept; give the scores in per cent."""
        records = {name: np.stack([one[name] for one in results]) for name in results[0]}
        save_records(self.out_file, records)
        every = np.ones((1, len(results)))
        return {name: float(measure(records, every)[0]) for name, measure in SEGMENTATION.items()}


def _confidence(logits: Tensor) -> np.ndarray:
    """``(K, H, W)`` -> the highest probability at each pixel, ``(H, W)``; one logit is of the second of two classes."""
    logits = logits.float()
    if len(logits) == 1:
        return torch.sigmoid(logits.abs())[0].cpu().numpy()
    return logits.softmax(0).amax(0).cpu().numpy()


def _sum(records: Records, name: str, weights: np.ndarray) -> np.ndarray:
    values = records[name].astype(np.float64)
    return (weights @ values.reshape(len(values), -1)).reshape(len(weights), *values.shape[1:])


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where there is nothing."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def class_iou(records: Records, weights: np.ndarray) -> np.ndarray:
    """Each class's IoU in per cent, ``(draws, K)``; NaN for a class that is neither annotated nor predicted."""
    both = _sum(records, 'both', weights)
    return 100 * _ratio(both, _sum(records, 'predicted', weights) + _sum(records, 'annotated', weights) - both)


def mean_iou(records: Records, weights: np.ndarray) -> np.ndarray:
    """The mean of the classes' IoU, as MMSegmentation's ``IoUMetric`` has it, ``(draws,)``."""
    return np.nanmean(class_iou(records, weights), 1)


def pixel_accuracy(records: Records, weights: np.ndarray) -> np.ndarray:
    """The share of annotated pixels whose class is right, in per cent, ``(draws,)``."""
    return 100 * _sum(records, 'both', weights).sum(1) / _sum(records, 'annotated', weights).sum(1)


def boundary_iou(records: Records, weights: np.ndarray) -> np.ndarray:
    """The mean of the classes' Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562), in per cent, ``(draws,)``.

    The boundary of a mask is what of it lies within 2 % of the image's diagonal of its contour; the IoU is that of two such
    boundaries.
    """
    return np.nanmean(100 * _ratio(_sum(records, 'boundary_both', weights), _sum(records, 'boundary_any', weights)), 1)


def object_iou(records: Records, weights: np.ndarray) -> np.ndarray:
    """The mean over the classes of Cityscapes' iIoU (Cordts et al., CVPR 2016, arXiv 1604.01685), in per cent, ``(draws,)``.

    Annotated pixels of a class are weighted with the mean size of its objects over the size of their own, so that small
    objects count as much as large ones: iTP / (iTP + FP + iFN). Objects are here the 8-connected components of the annotation.
    """
    annotated, objects = _sum(records, 'annotated', weights), _sum(records, 'objects', weights)
    wrong = _sum(records, 'predicted', weights) - _sum(records, 'both', weights)
    return np.nanmean(100 * _ratio(_sum(records, 'found', weights) * _ratio(annotated, objects), annotated + wrong), 1)


def calibration_error(records: Records, weights: np.ndarray) -> np.ndarray:
    """The expected calibration error of the pixels' classes (Guo et al., ICML 2017, arXiv 1706.04599), in per cent,
    ``(draws,)``: how far the share of right pixels is from their mean probability, in 15 bins of it; less is better."""
    confidence = _sum(records, 'confidence', weights)
    return 100 * np.abs(confidence[:, 1] - confidence[:, 2]).sum(1) / confidence[:, 0].sum(1)


# Of all scores, the first is the one that learning rates are chosen by.
SEGMENTATION: dict[str, Measure] = {
    'mIoU': mean_iou, 'boundary IoU': boundary_iou, 'object IoU': object_iou, 'pixel accuracy': pixel_accuracy,
    'calibration error': calibration_error}
