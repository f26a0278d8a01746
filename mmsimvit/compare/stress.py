"""Trained models on images of other sizes, and on images that are worse than those they were trained on."""
import argparse
import copy
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config, ConfigDict

from ..datasets.unwrap import unwrap_dataset
from ..engine import build_runner
from .record import write_json

RESIZING = {'Resize': 'scale', 'ResizeEdge': 'scale', 'CenterCrop': 'crop_size'}


def gaussian_noise(image: np.ndarray, severity: int, random: np.random.RandomState) -> np.ndarray:
    """Of a standard deviation of 0.08 to 0.38 of the range."""
    return image + 255 * (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1] * random.standard_normal(image.shape)


def gaussian_blur(image: np.ndarray, severity: int, random: np.random.RandomState) -> np.ndarray:
    """Of a standard deviation of 1 to 6 pixels."""
    return cv2.GaussianBlur(image, (0, 0), (1, 2, 3, 4, 6)[severity - 1])


def contrast(image: np.ndarray, severity: int, random: np.random.RandomState) -> np.ndarray:
    """Reduced to 0.4 to 0.05, around the image's mean colour."""
    mean = image.mean((0, 1), keepdims=True)
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] * (image - mean)


def fog(image: np.ndarray, severity: int, random: np.random.RandomState) -> np.ndarray:
    """Clouds of noise of halving grain, between nothing and 1.5 to 3 times the range, over an image that fades as much."""
    height, width = image.shape[:2]
    density, decay = ((1.5, 2.), (2., 2.), (2.5, 1.7), (2.5, 1.5), (3., 1.4))[severity - 1]
    clouds, cells = np.zeros((height, width)), 2
    while cells < max(height, width):
        grain = random.standard_normal((cells, cells))
        clouds += cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR) / decay**np.log2(cells)
        cells *= 2
    clouds = (clouds - clouds.min()) / max(float(np.ptp(clouds)), 1e-9)
    brightest = max(float(image.max()), 1.)
    return (image + 255 * density * clouds[..., None]) * brightest / (brightest + 255 * density)


def jpeg(image: np.ndarray, severity: int, random: np.random.RandomState) -> np.ndarray:
    """Compressed with a quality of 25 to 7."""
    quality = (25, 18, 15, 10, 7)[severity - 1]
    _, code = cv2.imencode('.jpg', image.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, np.random.RandomState], np.ndarray]] = {
    'noise': gaussian_noise, 'blur': gaussian_blur, 'contrast': contrast, 'fog': fog, 'JPEG': jpeg}


class Corrupt:
    """Make an image worse, after Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261): the kinds are theirs, and the
    severities those of ImageNet-C. The fog's clouds are made in another way. What is random depends on the image's name alone.

    Args:
        kind: of ``CORRUPTIONS``.
        severity: 1 to 5.
    """

    def __init__(self, kind: str, severity: int) -> None:
        self.kind, self.severity = kind, severity

    def __call__(self, results: dict) -> dict:
        """Change ``img``, ``(H, W, 3)`` uint8."""
        random = np.random.RandomState(zlib.crc32(Path(results['img_path']).name.encode()))
        worse = CORRUPTIONS[self.kind](results['img'].astype(np.float64), self.severity, random)
        results['img'] = np.clip(np.round(worse), 0, 255).astype(np.uint8)
        return results


def conditions(factors: list[float], severities: list[int]) -> dict[str, dict[str, Any]]:
    """What is evaluated, by name: the size of images times a factor, and each corruption."""
    found: dict[str, dict[str, Any]] = {f'size {factor:g}': dict(factor=factor) for factor in factors}
    return found | {f'{kind} {severity}': dict(kind=kind, severity=severity) for kind in CORRUPTIONS for severity in severities}


def under(cfg: Config, out_file: str, factor: float = 1., kind: str | None = None, severity: int = 1) -> Config:
    """A training's config, whose test images have another size or are worse.

    Args:
        cfg: of the training.
        out_file: for the records of its images.
        factor: that what resizes and crops in the pipeline is multiplied with; without that, a ``Resize`` is put in.
        kind, severity: of ``Corrupt``; None for none.
    """
    cfg = copy.deepcopy(cfg)
    cfg.test_evaluator.out_file = out_file
    for dataset in unwrap_dataset(cfg.test_dataloader.dataset):
        pipeline = dataset.pipeline
        if kind:
            pipeline.insert(1, ConfigDict(type='mmsimvit.compare.stress.Corrupt', kind=kind, severity=severity))
        if factor == 1:
            continue
        steps = [step for step in pipeline if step.type in RESIZING]
        for step in steps:
            key = RESIZING[step.type]
            size = step[key]
            step[key] = round(size * factor) if isinstance(size, int) else tuple(round(x * factor) for x in size)
        if not steps:
            pipeline.insert(1, ConfigDict(type='Resize', scale_factor=factor, keep_ratio=True))
    return cfg


def main(argv: list[str] | None = None) -> None:
    """Evaluate one training under all conditions, and write their scores; those that are there are not evaluated again."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('folder', type=Path, help="of the training's config and checkpoints")
    parser.add_argument('checkpoint')
    parser.add_argument('--factors', type=float, nargs='*', default=[])
    parser.add_argument('--severities', type=int, nargs='*', default=[])
    args = parser.parse_args(argv)
    path = args.folder / 'stress.json'
    found = json.loads(path.read_text()) if path.is_file() else {}
    for name, settings in conditions(args.factors, args.severities).items():
        if name not in found:
            cfg = under(Config.fromfile(args.folder / 'config.py'), str(args.folder / 'stress.npz'), **settings)
            cfg.update(load_from=args.checkpoint, work_dir=str(args.folder / 'stress'), experiment_name=name.replace(' ', '_'))
            found[name] = {score: float(value) for score, value in build_runner(cfg).test().items()}
            write_json(path, found)


if __name__ == '__main__':
    main()
