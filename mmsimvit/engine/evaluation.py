"""What MMDetection's evaluators are told, compared with the images that they get."""
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import BaseLoop

from ..errors import DataError


def fit_evaluator(loop: BaseLoop) -> BaseLoop:
    """Let metrics that read an annotation file of their own (COCO's, LVIS') evaluate the images that the loop has, no others.

    pycocotools takes an annotation with the id 0 for none, and every object in an image that is not given for one that was not
    found. So the id is changed, and the metric is told which images are given.

    Args:
        loop: a validation or test loop; it is also what is returned.

    Raises:
        DataError: if the file of a metric does not have the images of the data. Where it has them, but other boxes in one, a
            warning says so.
    """
    dataset = loop.dataloader.dataset
    for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
        api = getattr(metric, '_coco_api', None) or getattr(metric, '_lvis_api', None)
        if api is not None and hasattr(metric, 'img_ids') and hasattr(dataset, 'get_data_info'):
            _renumber(api)
            given = _compare(dataset, api, type(metric).__name__)
            if len(given) < len(api.imgs):
                metric.img_ids = given
                print_log(f'{type(metric).__name__} evaluates the {len(given)} of {len(api.imgs)} images of its file that the '
                          'data has', 'current')
    return loop


def _renumber(api: Any) -> None:
    """Give the annotation whose id is 0 another one."""
    if 0 in api.anns:
        annotation = api.anns.pop(0)
        annotation['id'] = max(api.anns, default=0) + 1
        api.anns[annotation['id']] = annotation


def _compare(dataset: Any, api: Any, metric: str) -> list[int]:
    """The ids of the images in their order, all of which are in the file of a metric."""
    dataset.full_init()
    advice = ('set ann_file of the evaluator to that of the data (val_evaluator, test_evaluator), or leave it out, with which '
              'the evaluator takes the annotations of the data')
    boxes = defaultdict(set)
    for annotation in api.anns.values():
        boxes[annotation['image_id']].add(tuple(annotation['bbox']))
    ids, others = [], []
    for index in range(len(dataset)):
        entry = dataset.get_data_info(index)
        image, name = entry.get('img_id'), Path(entry.get('img_path', ''))
        known = api.imgs.get(image)
        file_name = known and known.get('file_name', Path(known.get('coco_url', '')).name)
        if known is None or (file_name and Path(file_name).name != name.name):
            there = f'another image ({file_name})' if known else 'no image'
            raise DataError(f'the evaluator ({metric}) has {there} with the id {image} of {name} in its annotation file, so '
                            f'that it is not that of the data; {advice}')
        ids.append(image)
        found = {(x, y, right - x, bottom - y) for x, y, right, bottom in
                 (instance['bbox'] for instance in entry.get('instances', ()) if 'bbox' in instance)}
        if found and not any(_is_near(box, other) for box in found for other in boxes[image]):
            others.append(name)
    if len(set(ids)) < len(ids):
        raise DataError(f'the evaluator ({metric}) has one annotation file, but the data has {len(ids)} images with '
                        f'{len(set(ids))} ids: several data sets are evaluated together; evaluate them one by one')
    if others:
        print_log(f'the evaluator ({metric}) and the data have no box in common in {len(others)} of {len(ids)} images, such as '
                  f'{others[0]}: are their annotation files the same? If not, {advice}', 'current', logging.WARNING)
    return ids


def _is_near(box: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(abs(a - b) < 1 for a, b in zip(box, other))
