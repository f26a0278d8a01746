"""A perfect detector has an AP of 1, or a line says why it has not."""
from types import SimpleNamespace

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.dataset import ConcatDataset
from mmengine.structures import InstanceData

from mmsimvit import DataError
from mmsimvit.datasets import CLASSES
from mmsimvit.engine.evaluation import fit_evaluator
from tests.own_data import edit


def data(root, split='val', **settings):
    return CocoDataset(data_root=str(root), ann_file=f'annotations/instances_{split}.json', data_prefix=dict(img=f'{split}/'),
                       metainfo=dict(classes=CLASSES), test_mode=True, **settings)


def perfect_ap(dataset, root, split='val'):
    """The AP of a metric with the file of a split, for the boxes that the data has."""
    metric = CocoMetric(ann_file=str(root / f'annotations/instances_{split}.json'))
    metric.dataset_meta = dataset.metainfo
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset), evaluator=SimpleNamespace(metrics=[metric]))
    assert fit_evaluator(loop) is loop
    for index in range(len(dataset)):
        entry = dataset.get_data_info(index)
        boxes = torch.tensor([instance['bbox'] for instance in entry['instances']])
        labels = torch.tensor([instance['bbox_label'] for instance in entry['instances']])
        found = InstanceData(bboxes=boxes, labels=labels, scores=torch.ones(len(boxes)))
        metric.process({}, [dict(img_id=entry['img_id'], ori_shape=(64, 64), pred_instances=found)])
    return metric.evaluate(len(dataset))['coco/bbox_mAP']


def test_ids_from_0(own):
    assert perfect_ap(data(own), own) == 1

    def from_0(coco):
        for item in coco['annotations']:
            item['id'] -= 1

    edit(own, from_0, 'val')
    assert perfect_ap(data(own), own) == 1


def test_ids_that_are_words(own):
    edit(own, lambda coco: [item.update(id=f'object {item["id"]}') for item in coco['annotations']], 'val')
    assert perfect_ap(data(own), own) == 1


def test_another_file_with_categories_in_another_order(own):
    dataset = data(own)
    edit(own, lambda coco: coco['categories'].reverse(), 'val')
    with pytest.raises(DataError, match=r"evaluator \(CocoMetric\) has the categories 'ring', .*but the data 'circle'"):
        perfect_ap(dataset, own)


def test_another_file_with_other_classes_of_the_same_boxes(own, monkeypatch):
    lines, dataset = [], data(own)
    monkeypatch.setattr('mmsimvit.engine.evaluation.print_log', lambda line, *_: lines.append(line))
    edit(own, lambda coco: [item.update(category_id=item['category_id'] % 6 + 1) for item in coco['annotations']], 'val')
    assert perfect_ap(dataset, own) < 1
    assert 'no box of the same class in common in 3 of 3 images' in lines[0]


def test_masks_with_which_an_evaluation_would_not_end(own):
    edit(own, lambda coco: coco['annotations'][0].update(segmentation=dict(size=[64, 64], counts='T3b1T3')), 'val')
    metric = CocoMetric(ann_file=str(own / 'annotations/instances_val.json'), metric=['segm'])
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=data(own)), evaluator=SimpleNamespace(metrics=[metric]))
    with pytest.raises(DataError, match=r'a mask of the evaluator, in image 000000.png, has run lengths'):
        fit_evaluator(loop)


def test_pixels_that_count_for_no_class():
    dataset = SimpleNamespace(reduce_zero_label=False, ignore_index=255)
    for value in (255, 0):
        loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset),
                               evaluator=SimpleNamespace(metrics=[SimpleNamespace(ignore_index=value)]))
        if value == 255:
            assert fit_evaluator(loop) is loop
            continue
        with pytest.raises(DataError, match='has ignore_index=0, but the data set 255, for pixels of no class'):
            fit_evaluator(loop)


@pytest.mark.parametrize('indices', [2, [2, 0]])
def test_a_part_of_the_images(own, indices):
    dataset = data(own, indices=indices)
    assert len(dataset) == 2
    assert perfect_ap(dataset, own) == 1


def test_another_file_with_other_images(own):
    for item in (own / 'val').iterdir():
        item.rename(item.with_name(f'val_{item.name}'))
    edit(own, lambda coco: [image.update(file_name=f'val_{image["file_name"]}') for image in coco['images']], 'val')
    with pytest.raises(DataError, match=r'evaluator \(CocoMetric\) has another image \(000000.png\) with the id 0 of .*'
                                        'val_000000.png.*set ann_file of the evaluator'):
        perfect_ap(data(own), own, 'train')


def test_another_file_without_the_image(own):
    edit(own, lambda coco: [image.update(id=image['id'] + 100) for image in coco['images']], 'val')
    with pytest.raises(DataError, match=r'evaluator \(CocoMetric\) has no image with the id 100 of .*000000.png'):
        perfect_ap(data(own), own, 'train')


def test_another_file_with_images_of_the_same_names(own, monkeypatch):
    lines = []
    monkeypatch.setattr('mmsimvit.engine.evaluation.print_log', lambda line, *_: lines.append(line))
    dataset = data(own)
    perfect_ap(dataset, own)
    assert not lines
    edit(own, lambda coco: [item.update(bbox=[50, 50, 9, 9]) for item in coco['annotations']], 'val')
    assert perfect_ap(dataset, own) < 1
    assert 'evaluator (CocoMetric) and the data have no box of the same class in common in 3 of 3 images, such as' in lines[0]


def test_several_sets_with_one_file(own):
    with pytest.raises(DataError, match=r'one annotation file, but the data has 6 images with 3 ids'):
        perfect_ap(ConcatDataset([data(own), data(own)]), own)
