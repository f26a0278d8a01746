"""Pictures of a training: curves from its logs, predictions beside what was to be found."""
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData

from ..config_files import find_config
from ..models import load_model


def read_scalars(work_dir: str | Path) -> list[dict]:
    """What all runs in a work dir logged, in the order of time; a run that was cut is followed by the resumed one."""
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.startswith('{') and line.endswith('}')]  # the last may be cut


def validation_scores(records: list[dict]) -> dict[str, dict[int, float]]:
    """The main validation scores among logged records, from 0 to 1: name -> epoch (or iteration) -> score."""
    scores: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if name.endswith(('mAP', 'mAP_50')):
                scores.setdefault(name, {})[record['step']] = value
            elif name.endswith(('mIoU', 'top1')):  # percentages
                scores.setdefault(name, {})[record['step']] = value / 100
    return scores


def draw_curves(work_dir: str | Path, out_file: str | Path) -> None:
    """Draw the loss by iteration and every validation score, from 0 to 1, by epoch (or iteration).

    Raises:
        ValueError: if nothing was logged in ``work_dir``.
    """
    records = read_scalars(work_dir)
    losses = {record['step']: record['loss'] for record in records if 'loss' in record}
    scores = validation_scores(records)
    if not losses:
        raise ValueError(f'no loss was logged in {work_dir}/*/vis_data/scalars.json, so there is no curve to draw')
    figure = Figure(figsize=(9, 3.5), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*sorted(losses.items())), color='tab:gray')
    left.set(xlabel='iteration', ylabel='training loss', ylim=(0, None))
    for name, values in scores.items():
        right.plot(*zip(*sorted(values.items())), marker='o', label=name)
    by_epoch = any('epoch' in record for record in records)
    right.set(xlabel='epoch' if by_epoch else 'iteration', ylabel='validation', ylim=(0, 1))
    right.xaxis.get_major_locator().set_params(integer=True)
    if scores:
        right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(out_file, dpi=120)


def draw_sizes(scores: dict[str, dict[int, list[float]]], metric: str, out_file: str | Path) -> None:
    """Draw scores over the size of the test images, a line for the mean of several trainings and a band for their range.

    Args:
        scores: name of a model -> size in pixels -> a score of each training.
        metric: what the scores are.
        out_file: where the picture goes.
    """
    figure = Figure(figsize=(6, 3.8), layout='constrained')
    axes = figure.subplots()
    for name, by_size in scores.items():
        sizes = sorted(by_size)
        line, = axes.plot(sizes, [np.mean(by_size[size]) for size in sizes], marker='o', label=name)
        axes.fill_between(sizes, [min(by_size[size]) for size in sizes], [max(by_size[size]) for size in sizes],
                          color=line.get_color(), alpha=0.2, linewidth=0)
    if len(scores) > 1:  # whose ends may lie on each other, so that names there would too
        axes.legend(frameon=False)
    axes.set(xlabel='size of test images (pixels)', ylabel=metric, xticks=sorted(set().union(*scores.values())))
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(out_file, dpi=120)


def draw_detections(config: str | Path, checkpoint: str | Path, out_file: str | Path, num_images: int = 8,
                    columns: int = 2, height: int = 320, score_thr: float = 0.5) -> None:
    """Draw ground truth (left) and predictions (right) of a detector for the first validation images, side by side.

    Args:
        config, checkpoint: of a trained detector.
        out_file: the PNG to write.
        num_images, columns: how many images, in how many columns.
        height: to which each image is enlarged, in pixels.
        score_thr: predictions of a lower score are left out.
    """
    import mmcv
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer
    visualizer = DetLocalVisualizer(name='detections', alpha=0.5, line_width=2)
    tiles = []
    for predicted, dataset in _predictions(config, checkpoint, num_images):
        visualizer.dataset_meta = dataset.metainfo
        image = mmcv.imread(predicted.img_path, channel_order='rgb')
        found = predicted.pred_instances.cpu().numpy()
        found = found[found.scores >= score_thr]
        truth = predicted.gt_instances.cpu()  # in the size of the file: test pipelines load annotations after they resized
        boxes = getattr(truth.bboxes, 'tensor', truth.bboxes)
        zoom = height / image.shape[0]
        size = (round(image.shape[1] * zoom), height)
        big = mmcv.imresize(image, size, interpolation='nearest')
        sample = DetDataSample()
        sample.gt_instances = _enlarged(
            InstanceData(bboxes=boxes, labels=truth.labels), truth.masks.to_ndarray(), zoom, size)
        sample.pred_instances = _enlarged(
            InstanceData(bboxes=found.bboxes, labels=found.labels, scores=found.scores), found.masks, zoom, size)
        visualizer.add_datasample('detections', big, sample, pred_score_thr=score_thr, show=False)
        left, right = np.split(visualizer.get_image(), 2, axis=1)
        tiles.append(_side_by_side(left, right))
    _write_grid(tiles, columns, out_file)


def draw_segmentations(config: str | Path, checkpoint: str | Path, out_file: str | Path, num_images: int = 8,
                       columns: int = 2, height: int = 320) -> None:
    """Draw ground truth (left) and predictions (right) of a segmentor for the first validation images, side by side, above
    the colours of the classes.

    Args:
        config, checkpoint: of a trained segmentor, whose dataset has a palette.
        out_file: the PNG to write.
        num_images, columns: how many images, in how many columns.
        height: to which each image is enlarged, in pixels.
    """
    import mmcv
    tiles = []
    for sample, dataset in _predictions(config, checkpoint, num_images):
        image = mmcv.imread(sample.img_path, flag='grayscale')[..., None]  # so that the colours are the classes' alone
        size = (round(image.shape[1] * height / image.shape[0]), height)
        palette = np.array(dataset.metainfo['palette'] + [(0, 0, 0)] * (256 - len(dataset.metainfo['palette'])))
        drawn = []
        for labels in (sample.gt_sem_seg, sample.pred_sem_seg):
            colours = palette[labels.data[0].cpu().numpy()]
            drawn.append(mmcv.imresize((0.4 * image + 0.6 * colours).astype(np.uint8), size, interpolation='nearest'))
        tiles.append(_side_by_side(*drawn))
    _write_grid(tiles, columns, out_file, legend=dict(zip(dataset.metainfo['classes'], dataset.metainfo['palette'])))


def draw_classifications(config: str | Path, checkpoint: str | Path, out_file: str | Path, num_images: int = 24,
                         columns: int = 8) -> None:
    """Draw validation images, evenly taken from all, with the class that a classifier sees and its score.

    Args:
        config, checkpoint: of a trained classifier.
        out_file: the PNG to write.
        num_images, columns: how many images, in how many columns.
    """
    import mmcv
    found = list(_predictions(config, checkpoint, num_images, spread=True))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(1.4 * columns, 1.7 * rows), layout='constrained')
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis('off')
    for axes, (sample, dataset) in zip(figure.axes, found):
        names, label, truth = dataset.metainfo['classes'], int(sample.pred_label), int(sample.gt_label)
        text = f'{names[label]} {sample.pred_score[label]:.2f}' + ('' if label == truth else f'\nnot {names[truth]}')
        axes.imshow(mmcv.imread(sample.img_path, channel_order='rgb'))
        axes.set_title(text, fontsize=8, color='black' if label == truth else 'tab:red')
    figure.savefig(out_file, dpi=120)


def _predictions(config: str | Path, checkpoint: str | Path, num_images: int,
                 spread: bool = False) -> Iterator[tuple[BaseDataElement, Any]]:
    """The data samples of validation images with what a model predicts, each with its dataset."""
    cfg = Config.fromfile(find_config(str(config)))
    model, _ = load_model(cfg, checkpoint)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        step = max(len(dataset) // num_images, 1) if spread else 1
        with torch.no_grad():
            for index in range(0, len(dataset), step)[:num_images]:
                yield model.test_step(pseudo_collate([dataset[index]]))[0], dataset


def _side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    line = np.full((left.shape[0], 4, 3), 255, left.dtype)
    return np.pad(np.concatenate((left, line, right), axis=1), ((4, 4), (4, 4), (0, 0)), constant_values=255)


def _write_grid(tiles: list[np.ndarray], columns: int, out_file: str | Path, legend: dict[str, Any] | None = None) -> None:
    """Write pictures of one height in rows, filled up with white, and below them names beside their colours."""
    import mmcv
    width = max(tile.shape[1] for tile in tiles)
    tiles = [np.pad(tile, ((0, 0), (0, width - tile.shape[1]), (0, 0)), constant_values=255) for tile in tiles]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start:start + columns], axis=1) for start in range(0, len(tiles), columns)]
    if legend:
        rows.append(_legend(legend, rows[0].shape[1]))
    mmcv.imwrite(np.concatenate(rows)[..., ::-1], str(out_file))


def _legend(colours: dict[str, Any], width: int) -> np.ndarray:
    """Names beside their colours, in as many lines as the width in pixels asks for; an RGB picture."""
    columns = max(width // (70 + 9 * max(map(len, colours))), 1)  # pixels of patch and space, and of a letter
    figure = Figure(figsize=((width + 0.5) / 100, 0.3 * -(-len(colours) // columns) + 0.1), dpi=100)  # which is rounded down
    figure.legend(handles=[Patch(color=np.divide(colour, 255), label=name) for name, colour in colours.items()], ncols=columns,
                  loc='center', frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _enlarged(instances: InstanceData, masks: np.ndarray, zoom: float, size: tuple[int, int]) -> InstanceData:
    """Instances, with boxes and masks for an image ``zoom`` times as large, as the visualizer wants them."""
    import mmcv
    instances.bboxes = torch.from_numpy(np.asarray(instances.bboxes) * zoom)
    instances.labels = torch.from_numpy(np.asarray(instances.labels))
    instances.masks = np.stack([mmcv.imresize(mask.astype(np.uint8), size, interpolation='nearest').astype(bool)
                                for mask in masks]) if len(masks) else np.zeros((0, *size[::-1]), bool)
    return instances
