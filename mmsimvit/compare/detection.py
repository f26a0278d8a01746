"""What is kept of each validation image of a detector: what COCO's evaluation matched in it."""
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.evaluation import CocoMetric
from mmengine.registry import METRICS
from pycocotools.cocoeval import COCOeval

from .metrics import detection_measures, save_records
from .statistics import Records

AREAS = {'all': 0, 'small': 1}  # their places in pycocotools


@METRICS.register_module()
class DetectionRecords(CocoMetric):
    """MMDetection's ``CocoMetric``, which keeps of each detection which image it is of and what it matched.

    Args:
        out_file: the npz file that gets, for ``bbox`` and ``segm``, and for objects of all and of small areas, of each
            detection in the order of scores its ``category``, the ``index`` of its image, and whether it ``matched`` and is
            ``ignored`` at ten thresholds of IoU; and how many objects of each class are ``annotated`` in each image.
        **settings: of ``CocoMetric``.
    """

    default_prefix = None

    def __init__(self, out_file: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.out_file = out_file

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Write what was matched; give the scores in per cent."""
        _, predictions = zip(*results)
        self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        self.img_ids: list[int] = [prediction['img_id'] for prediction in predictions]  # the file may have others
        images = self._coco_api.load_imgs(self.img_ids)
        records: Records = dict(image=np.array([image['file_name'] for image in images]))
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            files = self.results2json(predictions, str(Path(folder, 'found')))
            for kind in self.metrics:
                records |= match(self._coco_api, files[kind], kind, self.cat_ids, self.img_ids)
        save_records(self.out_file, records)
        every = np.ones((1, len(images)))
        return {name: float(measure(records, every)[0]) for name, measure in detection_measures(records).items()}


def match(annotated: Any, file: str, kind: str, categories: list[int], images: list[int]) -> Records:
    """Match detections with annotations by pycocotools, and keep what its average precision is computed from.

    Args:
        annotated: pycocotools' ``COCO``.
        file: detections in COCO's format.
        kind: ``bbox`` or ``segm``.
        categories, images: the ids that are evaluated, in their order.
    """
    if json.loads(Path(file).read_text()):
        found = annotated.loadRes(file)
    else:  # which pycocotools cannot load
        found = type(annotated)()
        found.dataset = {**annotated.dataset, 'annotations': []}
        found.createIndex()
    evaluation = COCOeval(annotated, found, kind)
    evaluation.params.catIds, evaluation.params.imgIds = list(categories), list(images)
    evaluation.evaluate()
    order = evaluation.params.imgIds  # which pycocotools sorted
    place = {image: number for number, image in enumerate(images)}
    cells = np.array(evaluation.evalImgs, dtype=object).reshape(len(categories), len(evaluation.params.areaRng), len(order))
    records: Records = {}
    for area, row in AREAS.items():
        counts = np.zeros((len(images), len(categories)), np.int64)
        parts: list[dict[str, np.ndarray]] = []
        for number in range(len(categories)):
            for image, cell in zip(order, cells[number, row]):
                if cell is None:
                    continue
                counts[place[image], number] = (np.asarray(cell['gtIgnore']) == 0).sum()
                scores = np.asarray(cell['dtScores'])
                parts.append(dict(category=np.full(len(scores), number), index=np.full(len(scores), place[image]), score=scores,
                                  matched=cell['dtMatches'].T > 0, ignored=cell['dtIgnore'].T.astype(bool)))
        thresholds = len(evaluation.params.iouThrs)
        empty = dict(category=np.zeros(0, int), index=np.zeros(0, int), score=np.zeros(0),
                     matched=np.zeros((0, thresholds), bool), ignored=np.zeros((0, thresholds), bool))
        joined = {name: np.concatenate([part[name] for part in (empty, *parts)]) for name in empty}
        ranks = np.argsort(-joined.pop('score'), kind='stable')
        records |= {f'{kind}_{area}_{name}': values[ranks] for name, values in joined.items()}
        records[f'{kind}_{area}_annotated'] = counts
    return records
