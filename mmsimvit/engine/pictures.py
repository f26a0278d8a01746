"""Pictures of a training: curves from its logs, predictions beside what was to be found."""
import json
from pathlib import Path

import numpy as np


def read_scalars(work_dir: str | Path) -> list[dict]:
    """What all runs in a work dir logged, in the order of time; a run that was cut is followed by the resumed one."""
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.startswith('{') and line.endswith('}')]  # the last may be cut


def draw_curves(work_dir: str | Path, out_file: str | Path) -> None:
    """Draw the loss by iteration and every validation score by epoch.

    Raises:
        ValueError: if nothing was logged in ``work_dir``.
    """
    from matplotlib.figure import Figure
    records = read_scalars(work_dir)
    losses = {record['step']: record['loss'] for record in records if 'loss' in record}
    scores = {}
    for record in records:
        for name, value in record.items():
            if name.endswith(('mAP', 'mAP_50', 'mIoU', 'top1')):
                scores.setdefault(name, {})[record['step']] = value
    if not losses:
        raise ValueError(f'no loss was logged in {work_dir}/*/vis_data/scalars.json, so there is no curve to draw')
    figure = Figure(figsize=(9, 3.5), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*sorted(losses.items())), color='tab:gray')
    left.set(xlabel='iteration', ylabel='training loss', ylim=(0, None))
    for name, values in scores.items():
        right.plot(*zip(*sorted(values.items())), marker='o', label=name)
    right.set(xlabel='epoch', ylabel='validation', ylim=(0, 1))
    right.xaxis.get_major_locator().set_params(integer=True)
    if scores:
        right.legend()
    for axes in (left, right):
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
    import torch
    from mmdet.apis import inference_detector, init_detector
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.config import Config
    from mmengine.registry import DATASETS, DefaultScope
    from mmengine.structures import InstanceData

    cfg = Config.fromfile(config)
    model = init_detector(cfg, str(checkpoint), device='cuda:0' if torch.cuda.is_available() else 'cpu')
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    visualizer = DetLocalVisualizer(name='detections', alpha=0.5, line_width=2)
    visualizer.dataset_meta = dataset.metainfo
    tiles = []
    for index in range(min(num_images, len(dataset))):
        info = dataset.get_data_info(index)
        image = mmcv.imread(info['img_path'], channel_order='rgb')
        found = inference_detector(model, info['img_path']).pred_instances.cpu().numpy()
        found = found[found.scores >= score_thr]
        # In the size of the file: MMDetection's test pipelines load annotations after they resized the image.
        truth = dataset.prepare_data(index)['data_samples'].gt_instances
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
        line = np.full((height, 4, 3), 255, left.dtype)
        tiles.append(np.pad(np.concatenate((left, line, right), axis=1), ((4, 4), (4, 4), (0, 0)), constant_values=255))
    width = max(tile.shape[1] for tile in tiles)
    tiles = [np.pad(tile, ((0, 0), (0, width - tile.shape[1]), (0, 0)), constant_values=255) for tile in tiles]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start:start + columns], axis=1) for start in range(0, len(tiles), columns)]
    mmcv.imwrite(np.concatenate(rows)[..., ::-1], str(out_file))


def _enlarged(instances, masks: np.ndarray, zoom: float, size: tuple[int, int]):
    """Instances, with boxes and masks for an image ``zoom`` times as large, as the visualizer wants them."""
    import mmcv
    import torch
    instances.bboxes = torch.from_numpy(np.asarray(instances.bboxes) * zoom)
    instances.labels = torch.from_numpy(np.asarray(instances.labels))
    instances.masks = np.stack([mmcv.imresize(mask.astype(np.uint8), size, interpolation='nearest').astype(bool)
                                for mask in masks]) if len(masks) else np.zeros((0, *size[::-1]), bool)
    return instances
