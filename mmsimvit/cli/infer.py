"""Predict on an image, or on all images below a folder, with a trained detector, segmentor or classifier.

For the image a/b.jpg below the folder given, the output folder gets

  a/b.jpg.drawn.jpg    the image with the predictions drawn on it, enlarged if it is small
  a/b.jpg.classes.png  from a segmentor: each pixel's label as its value
  a/b.jpg.json         image (its name), width, height, and
    from a detector    instances: a list of label, class, score, box ([x1, y1, x2, y2] in pixels, from the upper left
                       corner) and, if the model predicts masks, mask (COCO run lengths, for pycocotools.mask.decode)
    from a segmentor   classes: a list of label, class, share (of the pixels, 0 to 1) of those that it found
    from a classifier  classes: a list of label, class, score of the five with the highest scores

An image whose EXIF data says how to turn it is turned first; sizes, boxes and masks are those of the turned image. An
image that cannot be decoded or resized is left out and named at the end, and the exit status is then 1.
"""
import argparse
import json
import sys
import warnings
from contextlib import suppress
from itertools import groupby, islice
from logging import LogRecord
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.infer import BaseInferencer
from mmengine.logging import MMLogger, print_log
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image
from rich.progress import Progress
from torch import nn

from ..datasets.unwrap import unwrap_dataset
from ..engine.work_dir import check_work_dir
from ..errors import DataError
from ..files import atomic_write
from ..weights import load_file, match_checkpoint
from .config import add_options, load_config
from .errors import one_line_errors

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
DRAWN, CLASS_MAP = '.drawn.jpg', '.classes.png'
DRAWN_SIZE = 512  # smaller images are enlarged up to this, in whole steps, for writing has a least size


class Library(NamedTuple):
    """What the models of a library predict, and what draws it."""
    visualizer: str
    predicted: str  # the part of a data sample that is written
    kind: str


LIBRARIES = {
    'mmdet': Library('DetLocalVisualizer', 'pred_instances', 'instances'),
    'mmseg': Library('SegLocalVisualizer', 'pred_sem_seg', 'class for each pixel'),
    'mmpretrain': Library('UniversalVisualizer', 'pred_score', 'scores of classes'),
}


class Picture(NamedTuple):
    """An image to predict on."""
    path: str
    name: str  # below the folder given
    pixels: np.ndarray | None  # (H, W, 3) uint8, RGB; None if it cannot be decoded


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path, metavar='IMAGE_OR_FOLDER', help='what to predict on')
    parser.add_argument('config', metavar='CONFIG', help='config file that the model was trained with')
    parser.add_argument('checkpoint', metavar='CHECKPOINT',
                        help='what that training wrote, such as work_dirs/<config name>/epoch_12.pth')
    parser.add_argument('--out-dir', type=Path, metavar='DIR',
                        help='output folder, ./work_dirs/<config name>/predictions by default; files of the same names are '
                        'replaced')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='SCORE',
                        help="leave out a detector's instances of a lower score (%(default)s by default)")
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ...; a GPU by default if there is one')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N',
                        help='take up to N images at a time through the model, where successive ones have the same size '
                        '(%(default)s by default)')
    parser.add_argument('--allow-partial', action='store_true',
                        help='predict with a checkpoint that lacks parameters of the model, too, or has some of another shape')
    add_options(parser)
    return parser.parse_args(argv)


def configure(args: argparse.Namespace) -> Config:
    """The config, its test data set taken out of all wrappers, for the inferencers look for a pipeline there.

    Raises:
        SystemExit: for an option or a config that there is no prediction with.
    """
    if args.batch_size < 1:
        raise SystemExit(f'error: --batch-size must be at least 1, got {args.batch_size}')
    cfg = load_config(args)
    if cfg.get('default_scope') not in LIBRARIES:
        raise SystemExit(f'error: the default_scope of {args.config} must be {", ".join(LIBRARIES)}, the library of the '
                         f'model, got {cfg.get("default_scope")}')
    if not cfg.get('test_dataloader'):
        raise SystemExit(f'error: {args.config} has no test_dataloader, whose pipeline prepares the images')
    cfg.test_dataloader.dataset = unwrap_dataset(cfg.test_dataloader.dataset)[0]
    cfg.setdefault('visualizer', ConfigDict(type=LIBRARIES[cfg.default_scope].visualizer))
    cfg.visualizer.vis_backends = None  # the drawings are files here, and in no log
    if cfg.default_scope != 'mmpretrain':
        cfg.visualizer.setdefault('alpha', 0.5)
    return cfg


def _is_of_use(record: LogRecord) -> bool:
    """MMDetection's inferencer looks for mmengine's functions in its own registry, which warns, and finds them."""
    return 'Failed to search registry with scope' not in record.getMessage()


def find_images(given: Path, out_dir: Path) -> list[tuple[str, str]]:
    """Paths of the images, and their names below the folder given, sorted.

    Hidden files and folders are left out, and so is what an earlier run wrote to ``out_dir``.

    Raises:
        DataError: if there are none.
    """
    if given.is_file():
        return [(str(given), given.name)]
    if not given.is_dir():
        raise DataError(f'{given} does not exist; name an image, or a folder with images')
    written = out_dir.resolve()
    found = [path for path in sorted(given.rglob('*')) if path.suffix.lower() in SUFFIXES and path.is_file()
             and not any(part.startswith('.') for part in path.relative_to(given).parts)
             and not (path.name.endswith((DRAWN, CLASS_MAP)) and written in path.resolve().parents)]
    if not found:
        raise DataError(f'folder {given} has no images in it; their names must end in {", ".join(SUFFIXES)}')
    return [(str(path), path.relative_to(given).as_posix()) for path in found]


def decode(path: str, name: str) -> Picture:
    """Read an image; one that cannot be decoded has no pixels."""
    import mmcv
    try:
        pixels = mmcv.imread(path, channel_order='rgb')  # None for most of what is no image
    except (OSError, cv2.error):
        pixels = None
    return Picture(path, name, pixels)


class Predictor:
    """A model, in its library's inferencer.

    Args:
        cfg: from ``configure``.
        checkpoint: path of the checkpoint.
        device: None for a GPU if there is one.
        whole: whether the checkpoint must give all parameters that predictions take.

    Raises:
        CheckpointError: if the checkpoint is missing, cut short, no checkpoint or one of another model.
        SystemExit: if there is no such device.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str | None, whole: bool = True) -> None:
        device = _existing_device(device or get_device())
        content = load_file(checkpoint)
        self.scope = cfg.default_scope
        init_default_scope(self.scope)
        logger = MMLogger.get_current_instance()
        logger.addFilter(_is_of_use)
        try:
            self.inferencer = self._make_inferencer(cfg, checkpoint, device)
        finally:
            logger.removeFilter(_is_of_use)
        self.model = self.inferencer.model
        found = match_checkpoint(self.model, content)
        line = found.check_any(checkpoint, self.model)
        if whole:
            found.check_predictions(checkpoint, self.model)
        if not found.complete:
            print_log(f'warning: {line}')
        self.classes, palette = find_classes(self.model, content.get('meta') or {}, cfg.test_dataloader.dataset)
        self.inferencer.visualizer.dataset_meta = dict(classes=self.classes, palette=palette)

    def _make_inferencer(self, cfg: Config, checkpoint: str, device: str) -> BaseInferencer:
        if self.scope == 'mmdet':
            from mmdet.apis import DetInferencer
            # Without a palette it would build the data set to find one.
            return DetInferencer(cfg, checkpoint, device, palette='random')
        if self.scope == 'mmseg':
            from mmseg.apis import MMSegInferencer
            return MMSegInferencer(cfg, checkpoint, device=device)
        from mmpretrain import ImageClassificationInferencer
        inferencer = ImageClassificationInferencer(cfg, checkpoint, device)
        # MMPreTrain's own configs leave its name out.
        inferencer.visualizer = VISUALIZERS.build({'name': 'predictions', **cfg.visualizer})
        return inferencer

    def predict(self, pictures: list[Picture]) -> list[BaseDataElement]:
        """The library's data samples for images of one size.

        Raises:
            SystemExit: if the model is for another task, such as panoptic segmentation or depth.
        """
        paths = [picture.path for picture in pictures]
        data, = self.inferencer.preprocess(paths, batch_size=len(paths))
        samples = self.inferencer.forward(data[1] if self.scope == 'mmdet' else data)
        _, predicted, kind = LIBRARIES[self.scope]
        if predicted not in samples[0]:
            raise SystemExit(f'error: {type(self.model).__name__} predicts no {kind}, which is all that is written of a '
                             f'model of {self.scope}')
        return samples

    def write(self, picture: Picture, sample: BaseDataElement, score_thr: float, out_dir: Path) -> int:
        """Write what was predicted on an image; the JSON file comes last, so that with it all is there.

        Returns:
            How many instances or classes that is.
        """
        assert picture.pixels is not None, 'what cannot be decoded has no predictions'
        height, width = picture.pixels.shape[:2]
        record: dict[str, Any] = dict(image=picture.name, width=width, height=height)
        zoom = max(DRAWN_SIZE // max(height, width), 1)
        draw = self.inferencer.visualizer.add_datasample
        options = dict(
            name='predictions', image=picture.pixels.repeat(zoom, 0).repeat(zoom, 1), data_sample=sample, draw_gt=False)
        if self.scope == 'mmdet':
            found = sample.pred_instances = sample.pred_instances[sample.pred_instances.scores >= score_thr]
            record['instances'] = self._instances(sample)
            found.bboxes = found.bboxes * zoom
            if 'masks' in found:
                found.masks = enlarge(found.masks, zoom)
            options['pred_score_thr'] = -1
        elif self.scope == 'mmseg':
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8 if len(self.classes) <= 256 else np.uint16)
            found, counts = np.unique(labels, return_counts=True)
            record['classes'] = [dict(self._named(label), share=count / labels.size)
                                 for label, count in zip(found.tolist(), counts.tolist())]
            atomic_write(out_dir / f'{picture.name}{CLASS_MAP}', Image.fromarray(labels).save)
            sample.pred_sem_seg = PixelData(data=enlarge(sample.pred_sem_seg.data, zoom))
        else:
            scores, labels = sample.pred_score.topk(min(5, len(sample.pred_score)))
            record['classes'] = [dict(self._named(label), score=score)
                                 for label, score in zip(labels.tolist(), scores.tolist())]
            draw = self.inferencer.visualizer.visualize_cls
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.* is out of bounds')  # what touches the border
            atomic_write(out_dir / f'{picture.name}{DRAWN}', lambda path: draw(**options, out_file=str(path)))
        atomic_write(out_dir / f'{picture.name}.json', lambda path: path.write_text(json.dumps(record)))
        return len(record.get('instances', record.get('classes', ())))

    def _instances(self, sample: BaseDataElement) -> list[dict]:
        found = self.inferencer.pred2dict(sample)
        instances = [dict(self._named(label), score=score, box=box)
                     for label, score, box in zip(found['labels'], found['scores'], found['bboxes'])]
        for instance, mask in zip(instances, found.get('masks', ())):
            instance['mask'] = mask
        return instances

    def _named(self, label: int) -> dict:
        return {'label': label, 'class': self.classes[label]}


def find_classes(model: nn.Module, meta: dict, dataset: ConfigDict) -> tuple[list[str], list[tuple]]:
    """Names and colours of the classes: from the checkpoint, or else from the config's data set.

    Names that the model has not been trained on (as many as it has classes) are replaced by the labels' numbers.

    Args:
        meta: of the checkpoint; MMDetection 2 and its contemporaries wrote the names in capitals.
    """
    known = {key.lower(): value for key, value in meta.get('dataset_meta', meta).items()}
    if not known.get('classes'):
        known = DATASETS.build(dict(dataset, lazy_init=True)).metainfo
    classes = list(known.get('classes') or ())
    # As mmdet.engine.hooks.NumClassCheckHook does; MMSegmentation's heads with a threshold have one output for two classes.
    sizes: set[Any] = {module.num_classes if getattr(module, 'threshold', None) is None else 2
                       for module in model.modules() if hasattr(module, 'num_classes')}
    if len(classes) not in (sizes or {len(classes)}):
        print_log(f'warning: neither checkpoint nor config names the {max(sizes)} classes of the model, so they are numbered')
        classes = [str(label) for label in range(max(sizes))]
    palette = known.get('palette') or ()
    if isinstance(palette, str) or len(palette) < len(classes):
        palette = np.random.RandomState(0).randint(0, 256, (len(classes), 3)).tolist()
    return classes, [tuple(colour) for colour in palette]


def enlarge(maps: torch.Tensor, zoom: int) -> torch.Tensor:
    """Repeat the pixels of maps ``(..., H, W)``."""
    return maps.repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)


def _existing_device(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SystemExit(f'error: --device must be cpu, cuda, cuda:1 or the like, got {name}') from None
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise SystemExit(f'error: --device {name} is not there: {torch.cuda.device_count()} CUDA devices were found')
    return name


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Predict on the images of a command line, and exit with an error if some were left out."""
    args = parse_args(argv)
    cfg = configure(args)
    out_dir = args.out_dir or Path(cfg.work_dir, 'predictions')
    images = find_images(args.images, out_dir)
    check_work_dir(out_dir)
    predictor = Predictor(cfg, args.checkpoint, args.device, whole=not args.allow_partial)
    left_out, found = [], 0
    with Progress() as progress:
        task = progress.add_task('predicting', total=len(images))
        pictures = (decode(*image) for image in images)
        for size, group in groupby(pictures, lambda picture: None if picture.pixels is None else picture.pixels.shape):
            while batch := list(islice(group, args.batch_size)):
                samples = []
                with suppress(cv2.error):  # of the pipeline, as for an image so thin that its resize leaves nothing
                    samples = predictor.predict(batch) if size else []
                for picture, sample in zip(batch, samples):
                    found += predictor.write(picture, sample, args.score_thr, out_dir)
                left_out += [] if samples else [picture.name for picture in batch]
                progress.advance(task, len(batch))
    print(f'predictions on {len(images) - len(left_out)} of {len(images)} images are in {out_dir}')
    if not found and len(left_out) < len(images):
        print(f'no instance has a score of {args.score_thr} or more: --score-thr takes a lower one; after a short training '
              'there may be none at all')
    if left_out:
        sys.exit(f'error: left out, for they cannot be decoded or resized: {", ".join(left_out)}')
