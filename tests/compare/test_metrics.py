"""Scores beside MMSegmentation's, and beside cases that were counted by hand."""
import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS, DefaultScope
from PIL import Image

from mmsimvit.compare.metrics import (
    SEGMENTATION,
    SegmentationRecords,
    boundary,
    boundary_iou,
    calibration_error,
    class_iou,
    load_records,
    mean_iou,
    object_iou,
    pixel_accuracy,
    segmentation_record,
)


def records_of(*images, classes=2):
    """Records of (predicted, labels) or (predicted, labels, probabilities)."""
    found = [segmentation_record(np.array(one[0]), np.array(one[1]), np.array(one[2]) if len(one) > 2 else
                                 np.ones(np.shape(one[0])), classes) for one in images]
    return {name: np.stack([record[name] for record in found]) for name in found[0]}


def once(measure, records):
    return measure(records, np.ones((1, len(records['both']))))[0]


def test_mean_iou_is_that_of_mmsegmentation(tmp_path):
    """To the last digit that it gives, through an evaluator, as a training has it."""
    generator = torch.Generator().manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        theirs = METRICS.build(dict(type='IoUMetric'))
    ours = SegmentationRecords(str(tmp_path / 'records.npz'), str(tmp_path / 'predictions'))
    evaluators = [Evaluator([metric]) for metric in (theirs, ours)]
    for evaluator in evaluators:
        evaluator.dataset_meta = dict(classes=tuple('abcdefgh'))
    for number in range(5):
        logits = torch.randn(8, 37, 41, generator=generator)
        labels = torch.randint(0, 7, (1, 37, 41), generator=generator)  # the last class is predicted, and never annotated
        logits[:7].scatter_add_(0, labels, torch.full((1, 37, 41), 1.5))
        labels[torch.rand(1, 37, 41, generator=generator) < 0.2] = 255
        sample = dict(img_path=f'{number}.png', gt_sem_seg=dict(data=labels), seg_logits=dict(data=logits),
                      pred_sem_seg=dict(data=logits.argmax(0, keepdim=True)))
        for evaluator in evaluators:
            evaluator.process([sample], None)
    expected, found = (evaluator.evaluate(5) for evaluator in evaluators)
    assert 30 < found['mIoU'] < 60
    assert round(found['mIoU'], 2) == expected['mIoU']
    assert round(found['pixel accuracy'], 2) == expected['aAcc']
    records = load_records(tmp_path / 'records.npz')
    assert once(mean_iou, records) == found['mIoU']
    totals = theirs.total_area_to_metrics(*(torch.from_numpy(area).double() for area in (
        records['both'].sum(0), (records['predicted'] + records['annotated'] - records['both']).sum(0),
        records['predicted'].sum(0), records['annotated'].sum(0))), ['mIoU'], None, 1)
    np.testing.assert_array_equal(100 * totals['IoU'], once(class_iou, records))
    assert once(pixel_accuracy, records) == pytest.approx(100 * totals['aAcc'].item(), abs=1e-12)
    assert np.asarray(Image.open(tmp_path / 'predictions/000003.png')).shape == (37, 41)
    assert records['image'].tolist()[3] == '3.png'


def test_a_boundary_is_a_ring():
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    ring = boundary(mask, 1)
    assert ring.sum() == 12 and not ring[3:5, 3:5].any()
    assert boundary(mask, 2).sum() == 16
    assert boundary(np.ones((5, 5), bool), 1).sum() == 16  # beyond the image is outside


def test_boundary_iou_by_hand():
    labels, predicted = np.zeros((2, 8, 8), int)
    labels[2:6, 2:6] = 1
    predicted[2:6, 3:7] = 1  # one to the right: of the rings of 12 pixels, 3 above and 3 below are in both
    records = records_of((predicted, labels))
    assert (records['boundary_both'][0, 1], records['boundary_any'][0, 1]) == (6, 18)
    of_background = records['boundary_both'][0, 0] / records['boundary_any'][0, 0]
    assert once(boundary_iou, records) == pytest.approx(100 * (6 / 18 + of_background) / 2)


def test_object_iou_by_hand():
    """Of two objects, of 4 pixels and of 1, half and all is found, and one pixel is wrong: 1.5 x 2.5 of 5 + 1."""
    labels, predicted = np.zeros((2, 6, 6), int)
    labels[0:2, 0:2] = labels[4, 4] = 1
    predicted[0, 0:2] = predicted[4, 4] = predicted[5, 0] = 1
    records = records_of((predicted, labels))
    assert (records['objects'][0, 1], records['found'][0, 1]) == (2, 1.5)
    background = 30 / 31 * 31 / (31 + 2)  # one object of 31 pixels, of which 30 are found, and two are wrong
    assert once(object_iou, records) == pytest.approx(100 * (1.5 * 2.5 / 6 + background) / 2)
    assert once(class_iou, records)[1] == pytest.approx(100 * 3 / 6)


def test_diagonal_pixels_are_one_object():
    labels = np.eye(4, dtype=int)
    assert records_of((labels, labels))['objects'][0].tolist() == [1, 1]  # beside four, of pixels that share an edge


def test_calibration_error_by_hand():
    """Three pixels at 0.8, two of them right, and one at 0.4 that is wrong: 3/4 of |2/3 - 0.8| and 1/4 of 0.4."""
    records = records_of(([[1, 1, 0, 0]], [[1, 1, 1, 1]], [[0.8, 0.8, 0.8, 0.4]]))
    assert once(calibration_error, records) == pytest.approx(100 * (3 / 4 * (0.8 - 2 / 3) + 1 / 4 * 0.4))


def test_pixels_of_no_class_count_for_nothing():
    labels, predicted = np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 1]])
    records = records_of((predicted, labels, [[0.9, 0.9, 0.9, 0.1]]))
    assert records['predicted'][0].tolist() == [1, 2]
    assert records['confidence'][0, 0].sum() == 3
    assert once(mean_iou, records) == pytest.approx(50.)


def test_a_draw_is_a_data_set_of_its_own():
    random = np.random.default_rng(0)
    images = [(random.integers(0, 3, (9, 11)), random.integers(0, 3, (9, 11)), random.random((9, 11))) for _ in range(4)]
    every, drawn = records_of(*images, classes=3), records_of(images[0], images[0], images[2], classes=3)
    for name, measure in SEGMENTATION.items():
        assert measure(every, np.array([[2., 0, 1, 0]]))[0] == pytest.approx(once(measure, drawn)), name


def test_a_class_that_is_nowhere_is_left_out():
    records = records_of(([[0, 1]], [[0, 0]]), classes=4)
    assert np.isnan(once(class_iou, records)[2:]).all()
    assert once(mean_iou, records) == 25.
