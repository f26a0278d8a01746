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


@METRICS.register_module()
class ClassificationRecords(BaseMetric):
    """A classifier's scores, and for each image what they are made of.

    Args:
        out_file: the npz file that gets of all images ``right``, ``label``, ``cross_entropy`` in nats, ``confidence``,
            ``(images, 3, BINS)`` as in ``segmentation_record``, and their paths in ``image``.
    """

    default_prefix = None

    def __init__(self, out_file: str) -> None:
        super().__init__()
        self.out_file = out_file

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep what is needed of a batch's predictions."""
        for sample in data_samples:
            probabilities, label = sample['pred_score'].double().cpu(), int(sample['gt_label'])
            confidence, predicted = probabilities.max(0)
            bins = np.zeros((3, BINS))
            bins[:, min(int(confidence * BINS), BINS - 1)] = 1, float(confidence), int(predicted) == label
            entropy = -float(probabilities[label].clamp_min(1e-12).log())
            self.results.append(dict(right=np.array(int(predicted) == label), label=np.array(label), confidence=bins,
                                     cross_entropy=np.array(entropy), image=np.array(sample['img_path'])))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Write what was kept; give the scores."""
        records = {name: np.stack([one[name] for one in results]) for name in results[0]}
        save_records(self.out_file, records)
        every = np.ones((1, len(results)))
        return {name: float(measure(records, every)[0]) for name, measure in CLASSIFICATION.items()}


def accuracy(records: Records, weights: np.ndarray) -> np.ndarray:
    """The share of images whose class is right (top-1), in per cent, ``(draws,)``."""
    return 100 * _sum(records, 'right', weights) / weights.sum(1)


def class_accuracy(records: Records, weights: np.ndarray) -> np.ndarray:
    """The same for the images of each class, ``(draws, K)``."""
    of_class = records['label'][:, None] == np.arange(records['label'].max() + 1)
    return 100 * _ratio(weights @ (of_class & records['right'][:, None].astype(bool)), weights @ of_class)


def cross_entropy(records: Records, weights: np.ndarray) -> np.ndarray:
    """The mean of the negative logarithm of the right class's probability, in nats, ``(draws,)``; less is better."""
    return _sum(records, 'cross_entropy', weights) / weights.sum(1)


CLASSIFICATION: dict[str, Measure] = {
    'accuracy': accuracy, 'calibration error': calibration_error, 'cross entropy': cross_entropy}

RECALLS = np.linspace(0, 1, 101)  # at which COCO reads precision


def class_ap(records: Records, weights: np.ndarray, kind: str = 'bbox', area: str = 'all',
             thresholds: slice = slice(None)) -> np.ndarray:
    """Each class's average precision as COCO computes it, in per cent, ``(draws, K)``; NaN where nothing is annotated.

    An image that is drawn twice counts as two images with the same objects and detections.

    Args:
        records: of ``DetectionRecords``.
        weights: ``(draws, images)``.
        kind: ``bbox`` or ``segm``.
        area: ``all`` or ``small``, below 32 x 32 pixels.
        thresholds: which of the ten IoUs, 0.5 to 0.95, are averaged.
    """
    def get(name: str) -> np.ndarray:
        return records[f'{kind}_{area}_{name}']

    annotated = weights @ get('annotated')
    found = np.full(annotated.shape, np.nan)
    for number in range(annotated.shape[1]):
        mine = get('category') == number
        images, matched = get('index')[mine], get('matched')[mine].T[thresholds]
        counts = ~get('ignored')[mine].T[thresholds]
        for draw in np.flatnonzero(annotated[:, number]):
            given = weights[draw, images]
            right = np.cumsum(given * (matched & counts), 1)
            wrong = np.cumsum(given * (~matched & counts), 1)
            precision = right / np.maximum(right + wrong, np.spacing(1))
            precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
            recall = right / annotated[draw, number]
            read = [np.append(line, 0.)[np.searchsorted(reached, RECALLS)] for line, reached in zip(precision, recall)]
            found[draw, number] = 100 * np.mean(read)
    return found


def _mean_ap(**settings: Any) -> Measure:
    def measure(records: Records, weights: np.ndarray) -> np.ndarray:
        values = class_ap(records, weights, **settings)
        known = ~np.isnan(values)
        return _ratio(np.where(known, values, 0).sum(1), known.sum(1).astype(float))

    return measure


# Of boxes; the scores of masks are added where a model has them.
DETECTION: dict[str, Measure] = {
    'box AP': _mean_ap(), 'AP50': _mean_ap(thresholds=slice(1)), 'small AP': _mean_ap(area='small')}
MASKS: dict[str, Measure] = {'mask AP': _mean_ap(kind='segm')}


def detection_measures(records: Records) -> dict[str, Measure]:
    """The scores that there are: of boxes, and of masks where these were predicted."""
    return {**DETECTION, **(MASKS if any(name.startswith('segm') for name in records) else {})}
