"""What MMDetection's evaluators are told, compared with the images that they get."""
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import BaseLoop

from ..datasets.coco import run_lengths, some
from ..datasets.unwrap import unwrap_dataset
from ..errors import DataError

ADVICE = ('set ann_file of the evaluator to that of the data (val_evaluator, test_evaluator), or leave it out, with which the '
          'evaluator takes the annotations of the data')


def fit_evaluator(loop: BaseLoop) -> BaseLoop:
    """Let metrics that read an annotation file of their own (COCO's, LVIS') evaluate the images that the loop has, no others.

    pycocotools takes an annotation with the id 0 for none, fails at one that is a word, and takes every object in an image that
    is not given for one that was not found. So annotations are numbered, and the metric is told which images are given.

    Args:
        loop: a validation or test loop; it is also what is returned.

    Raises:
        DataError: if the file of a metric does not have the images of the data, or numbers its categories otherwise, or has a
            mask that its evaluation would not end with. Where it has other boxes or classes in an image, a warning says so.
    """
    dataset = loop.dataloader.dataset
    for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
        ignored = {leaf.ignore_index for leaf in unwrap_dataset(dataset) if hasattr(leaf, 'reduce_zero_label')}
        if ignored and getattr(metric, 'ignore_index', None) not in (None, *ignored):
            raise DataError(f'the evaluator ({type(metric).__name__}) has ignore_index={metric.ignore_index}, but the data set '
                            f'{min(ignored)}, for pixels of no class, which would count as wrong: set the same value in both')
        api = getattr(metric, '_coco_api', None) or getattr(metric, '_lvis_api', None)
        if api is not None and hasattr(metric, 'img_ids') and hasattr(dataset, 'get_data_info'):
            _renumber(api)
            if getattr(metric, '_coco_api', None) is not None:
                _compare_categories(dataset, api, type(metric).__name__)
            if 'segm' in getattr(metric, 'metrics', ()):
                _check_masks(api)
            given = _compare(dataset, api, type(metric).__name__)
            if len(given) < len(api.imgs):
                metric.img_ids = given
                print_log(f'{type(metric).__name__} evaluates the {len(given)} of {len(api.imgs)} images of its file that the '
                          'data has', 'current')
    return loop


def _renumber(api: Any) -> None:
    """Number the annotations from 1."""
    annotations = api.dataset.get('annotations', [])
    for number, annotation in enumerate(annotations, start=1):
        annotation['id'] = number
    api.anns = {annotation['id']: annotation for annotation in annotations}


def _compare_categories(dataset: Any, api: Any, metric: str) -> None:
    """The categories of a metric's file must be those of the data in their order, which is what numbers the predictions."""
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    names = [category['name'] for category in api.dataset.get('categories', ())]
    known = [name for name in names if classes and name in classes]
    if classes and known != list(classes):
        raise DataError(f'the evaluator ({metric}) has the categories {some(known or names)} in its annotation file, but the '
                        f'data {some(list(classes))}: labels of one class would count for another; {ADVICE}')


def _check_masks(api: Any) -> None:
    """Run lengths that do not add up let pycocotools run for ever."""
    for annotation in api.anns.values():
        mask = annotation.get('segmentation')
        if isinstance(mask, dict) and sum(run_lengths(mask['counts'])) != mask['size'][0] * mask['size'][1]:
            raise DataError(f'a mask of the evaluator, in image {api.imgs[annotation["image_id"]].get("file_name")}, has run '
                            f'lengths that do not add up to its {mask["size"]} pixels, and the evaluation would not end; '
                            'encode it again')


def _compare(dataset: Any, api: Any, metric: str) -> list[int]:
    """The ids of the images in their order, all of which are in the file of a metric."""
    dataset.full_init()
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') if hasattr(api, 'createIndex') else None  # not of LVIS
    boxes = defaultdict(set)
    for annotation in api.anns.values():
        name = classes and (api.cats.get(annotation['category_id']) or {}).get('name')
        boxes[annotation['image_id']].add((name, *annotation['bbox']))
    ids, others = [], []
    for index in range(len(dataset)):
        entry = dataset.get_data_info(index)
        image, name = entry.get('img_id'), Path(entry.get('img_path', ''))
        known = api.imgs.get(image)
        file_name = known and known.get('file_name', Path(known.get('coco_url', '')).name)
        if known is None or (file_name and Path(file_name).name != name.name):
            there = f'another image ({file_name})' if known else 'no image'
            raise DataError(f'the evaluator ({metric}) has {there} with the id {image} of {name} in its annotation file, so '
                            f'that it is not that of the data; {ADVICE}')
        ids.append(image)
        found = set()
        for instance in entry.get('instances', ()):
            if 'bbox' in instance:
                x, y, right, bottom = instance['bbox']
                found.add((classes and classes[instance['bbox_label']], x, y, right - x, bottom - y))
        if found and not any(_is_near(box, other) for box in found for other in boxes[image]):
            others.append(name)
    if len(set(ids)) < len(ids):
        raise DataError(f'the evaluator ({metric}) has one annotation file, but the data has {len(ids)} images with '
                        f'{len(set(ids))} ids: several data sets are evaluated together; evaluate them one by one')
    if others:
        print_log(f'the evaluator ({metric}) and the data have no box of the same class in common in {len(others)} of '
                  f'{len(ids)} images, such as {others[0]}: are their annotation files the same? If not, {ADVICE}', 'current',
                  logging.WARNING)
    return ids


def _is_near(box: tuple, other: tuple) -> bool:
    return box[0] == other[0] and all(abs(a - b) < 1 for a, b in zip(box[1:], other[1:]))
