"""Scores of detectors and classifiers, beside pycocotools' and cases that were counted by hand."""
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmsimvit.compare.detection import DetectionRecords, match
from mmsimvit.compare.metrics import (
    CLASSIFICATION,
    ClassificationRecords,
    class_accuracy,
    class_ap,
    detection_measures,
    load_records,
)


def made_up(random, images=12, classes=3):
    """Annotations and detections: most near to an object, some anywhere, some objects small, one of a crowd."""
    annotations, found = [], []
    for image in range(1, images + 1):
        for _ in range(random.integers(0, 5)):
            x, y, w, h = *random.integers(0, 60, 2), *random.integers(8, 60, 2)
            category = int(random.integers(1, classes + 1))
            annotations.append(dict(id=len(annotations) + 1, image_id=image, category_id=category, area=int(w * h),
                                    iscrowd=int(len(annotations) == 4), bbox=[int(x), int(y), int(w), int(h)]))
            for _ in range(random.integers(0, 3)):
                shift = random.normal(0, 2, 4)
                found.append(dict(image_id=image, category_id=category, score=round(float(random.random()), 2),
                                  bbox=[x + shift[0], y + shift[1], max(2, w + shift[2]), max(2, h + shift[3])]))
        found.append(dict(image_id=image, category_id=1, score=round(float(random.random()), 2), bbox=[5, 5, 20, 20]))
    sizes = [dict(id=image, width=128, height=128, file_name=f'{image}.png') for image in range(1, images + 1)]
    categories = [dict(id=number, name=str(number)) for number in range(1, classes + 1)]
    return dict(images=sizes, annotations=annotations, categories=categories), found


def load(content):
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def theirs(content, found):
    coco = load(content)
    evaluation = COCOeval(coco, coco.loadRes(found), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return 100 * evaluation.stats


def ours(content, found, path):
    path.write_text(json.dumps(found))
    return match(load(content), str(path), 'bbox', [1, 2, 3], [image['id'] for image in content['images']])


def test_average_precision_is_that_of_pycocotools(tmp_path):
    content, found = made_up(np.random.default_rng(0))
    records, stats = ours(content, found, tmp_path / 'found.json'), theirs(content, found)
    scores = {name: measure(records, np.ones((1, 12)))[0] for name, measure in detection_measures(records).items()}
    assert scores == pytest.approx({'box AP': stats[0], 'AP50': stats[1], 'small AP': stats[3]}, abs=1e-9)
    assert 10 < scores['box AP'] < 90


def test_a_draw_is_a_data_set_of_its_own(tmp_path):
    """With images twice and images left out: what pycocotools gives when they are copied and left out."""
    content, found = made_up(np.random.default_rng(1))
    weights = np.array([[2., 0, 1, 1, 3, 0, 1, 1, 0, 2, 1, 0]])
    records = ours(content, found, tmp_path / 'found.json')
    drawn, copies = dict(content, images=[], annotations=[]), []
    for image, number in enumerate(weights[0].astype(int), 1):
        for copy in range(number):
            new = 100 * image + copy
            drawn['images'].append(dict(content['images'][image - 1], id=new))
            for one in content['annotations']:
                if one['image_id'] == image:
                    drawn['annotations'].append(dict(one, id=len(drawn['annotations']) + 1, image_id=new))
            copies += [dict(one, image_id=new) for one in found if one['image_id'] == image]
    ap = np.nanmean(class_ap(records, weights))
    assert ap == pytest.approx(theirs(drawn, copies)[0], abs=1e-9)
    assert abs(ap - np.nanmean(class_ap(records, np.ones((1, 12))))) > 1


def test_a_detector_that_finds_nothing(tmp_path):
    content, _ = made_up(np.random.default_rng(2))
    records = ours(content, [], tmp_path / 'found.json')
    assert detection_measures(records)['box AP'](records, np.ones((1, 12)))[0] == 0


def test_images_that_are_not_evaluated_are_not_missed(tmp_path):
    """A search scores on a part of the images of a file."""
    content, _ = made_up(np.random.default_rng(3))
    content['annotations'] = [dict(one, iscrowd=0) for one in content['annotations']]
    (tmp_path / 'all.json').write_text(json.dumps(content))
    metric = DetectionRecords(str(tmp_path / 'records.npz'), ann_file=str(tmp_path / 'all.json'), metric='bbox')
    metric.dataset_meta = dict(classes=('1', '2', '3'))
    some = (3, 1)
    for image in some:
        mine = [one for one in content['annotations'] if one['image_id'] == image]
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (one['bbox'] for one in mine)]).float().reshape(-1, 4)
        found = dict(bboxes=boxes, labels=torch.tensor([one['category_id'] - 1 for one in mine]).long(),
                     scores=torch.ones(len(mine)))
        metric.process({}, [dict(img_id=image, ori_shape=(128, 128), pred_instances=found)])
    assert {1, 2, 3} <= {one['image_id'] for one in content['annotations']}
    assert metric.evaluate(2)['box AP'] == pytest.approx(100)
    assert load_records(tmp_path / 'records.npz')['image'].tolist() == ['3.png', '1.png']


def test_scores_of_a_classifier_by_hand(tmp_path):
    metric = ClassificationRecords(str(tmp_path / 'records.npz'))
    given = [([0.9, 0.1, 0.0], 0), ([0.2, 0.5, 0.3], 2), ([0.1, 0.6, 0.3], 1), ([0.6, 0.4, 0.0], 1)]
    metric.process(None, [dict(pred_score=torch.tensor(scores), gt_label=torch.tensor([label]), img_path=f'{place}.png')
                          for place, (scores, label) in enumerate(given)])
    found = metric.evaluate(4)
    assert found['accuracy'] == 50
    assert found['cross entropy'] == pytest.approx(-np.log([0.9, 0.3, 0.6, 0.4]).mean(), abs=1e-6)
    # 0.5 is in a bin of its own, wrong; 0.6 and 0.6 share one, of which one is right; 0.9 is right
    assert found['calibration error'] == pytest.approx(100 * (0.1 + 0.5 + 2 * 0.1) / 4, abs=1e-5)
    records = load_records(tmp_path / 'records.npz')
    assert class_accuracy(records, np.ones((1, 4)))[0].tolist() == [100, 50, 0]
    assert CLASSIFICATION['accuracy'](records, np.array([[2., 1, 0, 1]]))[0] == 50
