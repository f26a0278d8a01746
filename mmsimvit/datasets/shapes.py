"""`shapes`: a generated data set of overlapping coloured shapes, for instance, semantic and image labels alike.

All arithmetic is on integers and all randomness comes from ``numpy.random.RandomState``, whose streams are frozen, so
that the same seed gives the same pixels on any machine. One folder serves the three libraries::

    images/{training,validation}/000000.png                 MMDetection and MMSegmentation
    annotations/instances_{training,validation}.json        COCO, exact masks as run lengths
    annotations/{training,validation}/000000.png            index masks: 0 background, 1 ... classes
    classification/{training,validation}/<class>/000000.png one object an image, for MMPreTrain
    shapes.json                                             the settings it was generated with
"""
import glob
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image
from rich.progress import Progress

from ..errors import DataError

CLASSES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')
SPLITS = ('training', 'validation')
SETTINGS = ('num_training', 'num_validation', 'image_size', 'seed')
UNFINISHED = '.unfinished'
VERSION = 2  # of the files; a change of the renderer must raise it

SUBPIXELS = 16
# Corners in 1/1024 of the radius, so that every shape but the cross reaches the circle around it.
CORNERS = {
    'square': [(-724, -724), (724, -724), (724, 724), (-724, 724)],
    'triangle': [(0, -1024), (887, 512), (-887, 512)],
    'star': [(0, -1024), (259, -356), (974, -316), (419, 136), (602, 828), (0, 440), (-602, 828), (-419, 136),
             (-974, -316), (-259, -356)],
    'cross': [(-300, -960), (300, -960), (300, -300), (960, -300), (960, 300), (300, 300), (300, 960), (-300, 960),
              (-300, 300), (-960, 300), (-960, -300), (-300, -300)],
}


def generate_shapes(root: str | Path, num_training: int = 1000, num_validation: int = 100, image_size: int = 128,
                    seed: int = 0) -> Path:
    """Write the data set to ``root``, or leave it as it is if it is there already.

    The folder appears whole or not at all: an interrupted generation leaves nothing of that name.

    Args:
        root: the folder to make.
        num_training: number of images; of each class, half as many are made for classification.
        num_validation: the same for validation.
        image_size: height and width of the images in pixels, at least 32; those for classification have half of it.
        seed: what the pixels depend on.

    Returns:
        ``root`` as a path.

    Raises:
        DataError: if ``root`` holds something else, such as the data set with other settings.
        ValueError: if a number is too small.
    """
    if image_size < 32 or num_training < 1 or num_validation < 1:
        raise ValueError(f'image_size must be at least 32 and both numbers of images positive, got image_size='
                         f'{image_size}, num_training={num_training}, num_validation={num_validation}')
    root = Path(root)
    settings = dict(version=VERSION, num_training=num_training, num_validation=num_validation, image_size=image_size,
                    seed=seed, classes=list(CLASSES))
    if _is_there(root, settings):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    _clean_up(root)
    building = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', suffix=UNFINISHED, dir=root.parent))
    try:
        building.chmod(0o755)  # mkdtemp makes it private
        with Progress() as progress:
            _write(building, settings, progress)
        (building / 'shapes.json').write_text(json.dumps(settings, indent=1))
        try:
            os.rename(building, root)
        except OSError:  # another process was faster
            if not _is_there(root, settings):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


@DATASETS.register_module(name='Shapes')
def shapes_dataset(dataset: dict, root: str, **options: Any) -> BaseDataset:
    """A dataset on generated images: ``dataset`` is built after ``generate_shapes`` made sure that they are there.

    ``options`` are settings of ``generate_shapes``; any other goes to ``dataset``, as ``lazy_init`` does that
    MMDetection's inference adds.
    """
    settings = {name: options.pop(name) for name in SETTINGS if name in options}
    generate_shapes(root, **settings)
    return DATASETS.build({**dataset, **options})


def _clean_up(root: Path) -> None:
    """Remove what generations left that were killed more than a day ago."""
    for left in root.parent.glob(f'.{glob.escape(root.name)}-*{UNFINISHED}'):
        try:
            if time.time() - left.stat().st_mtime > 86400:
                shutil.rmtree(left)
        except FileNotFoundError:  # another process finished or removed it
            continue


def _is_there(root: Path, settings: dict) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    record = root / 'shapes.json'
    found = json.loads(record.read_text()) if record.is_file() else 'something else'
    if found != settings:
        raise DataError(f'{root} should hold the generated data set {settings} but holds {found}; '
                        'move it away, or give the data set another root')
    return True


def _write(root: Path, settings: dict, progress: Progress) -> None:
    size, counts = settings['image_size'], (settings['num_training'], settings['num_validation'])
    per_class = [max(count // 2, 1) for count in counts]
    task = progress.add_task('generating shapes', total=sum(counts) + len(CLASSES) * sum(per_class))
    for split, name in enumerate(SPLITS):
        for kind in ('images', 'annotations'):
            (root / kind / name).mkdir(parents=True)
        coco: dict[str, Any] = dict(info=dict(description='mmsimvit shapes', version=str(VERSION)), images=[], annotations=[],
                                    categories=[dict(id=index, name=label) for index, label in enumerate(CLASSES, 1)])
        for number in range(counts[split]):
            file_name = f'{number:06d}.png'
            image, labels, masks = draw_scene(np.random.RandomState([settings['seed'], split, number]), size)
            semantic = np.zeros((size, size), np.uint8)
            coco['images'].append(dict(id=number, file_name=file_name, height=size, width=size))
            for label, mask in zip(labels, masks):
                semantic[mask] = label + 1
                coco['annotations'].append(_annotation(len(coco['annotations']) + 1, number, label, mask))
            Image.fromarray(image).save(root / 'images' / name / file_name)
            Image.fromarray(semantic).save(root / 'annotations' / name / file_name)
            progress.advance(task)
        (root / 'annotations' / f'instances_{name}.json').write_text(json.dumps(coco))
        for label, class_name in enumerate(CLASSES):
            folder = root / 'classification' / name / class_name
            folder.mkdir(parents=True)
            for number in range(per_class[split]):
                random = np.random.RandomState([settings['seed'], split, number, label])
                Image.fromarray(draw_object(random, size // 2, label)).save(folder / f'{number:06d}.png')
                progress.advance(task)


def draw_scene(random: np.random.RandomState, size: int) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
    """An image with one to five shapes, later ones in front.

    Returns:
        The image, ``(size, size, 3)`` uint8; each object's label, an index into ``CLASSES``; and its visible
        pixels, ``(size, size)`` bool. An object keeps at least half of its pixels in sight.
    """
    image = _background(random, size)
    labels: list[int] = []
    masks: list[np.ndarray] = []
    areas: list[int] = []
    # Each octave of radii is as likely: from a 12th of the image to a 6th, and on to a third.
    octaves = [size * SUBPIXELS // 12 << random.randint(2) for _ in range(random.randint(1, 6))]
    radii = [low + random.randint(low) for low in octaves]
    for radius in sorted(radii, reverse=True):
        label = random.randint(len(CLASSES))
        mask = _shape_mask(random, size, label, radius)
        if any(2 * (other & ~mask).sum() < area for other, area in zip(masks, areas)):
            continue
        masks = [other & ~mask for other in masks] + [mask]
        labels.append(label)
        areas.append(mask.sum())
        _paint(random, image, mask)
    return image, labels, masks


def draw_object(random: np.random.RandomState, size: int, label: int) -> np.ndarray:
    """An image, ``(size, size, 3)`` uint8, of one shape of the given class."""
    image = _background(random, size)
    radius = random.randint(size * SUBPIXELS // 5, size * SUBPIXELS * 9 // 20)
    _paint(random, image, _shape_mask(random, size, label, radius))
    return image


def _shape_mask(random: np.random.RandomState, size: int, label: int, radius: int) -> np.ndarray:
    """The pixels, ``(size, size)`` bool, of a shape at a random place and angle; ``radius`` is in subpixels."""
    x, y = random.randint(radius, size * SUBPIXELS - radius + 1, 2)
    rows = np.arange(size, dtype=np.int64)[:, None] * SUBPIXELS + SUBPIXELS // 2 - y
    cols = np.arange(size, dtype=np.int64)[None] * SUBPIXELS + SUBPIXELS // 2 - x
    name = CLASSES[label]
    if name not in CORNERS:
        distance = rows**2 + cols**2
        return (distance <= radius**2) & ((name == 'circle') | (4 * distance >= radius**2))
    # Pythagorean triples give angles whose sine and cosine are fractions: rotation stays exact.
    m, n = random.randint(1, 9), random.randint(0, 9)
    sine, cosine, hypotenuse = 2 * m * n, m * m - n * n, m * m + n * n
    corners = [((cosine * a - sine * b) * radius // (hypotenuse * 1024),
                (sine * a + cosine * b) * radius // (hypotenuse * 1024)) for a, b in CORNERS[name]]
    inside = np.zeros((size, size), bool)
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1]):  # even-odd rule
        crosses = (y1 > rows) != (y2 > rows)
        left = (cols - x1) * (y2 - y1) < (x2 - x1) * (rows - y1)
        inside ^= crosses & (left if y2 > y1 else ~left & ((cols - x1) * (y2 - y1) != (x2 - x1) * (rows - y1)))
    return inside


def _background(random: np.random.RandomState, size: int) -> np.ndarray:
    """A gradient between four random colours, with blotches, stripes and grain."""
    cell = max(size // 8, 1)
    coarse = random.randint(0, 31, (size // cell + 2, size // cell + 2)).repeat(cell, 0).repeat(cell, 1)
    weight = np.arange(size, dtype=np.int64)
    corners = random.randint(40, 180, (2, 2, 3))
    top = corners[0, 0] * (size - weight)[:, None] + corners[0, 1] * weight[:, None]
    bottom = corners[1, 0] * (size - weight)[:, None] + corners[1, 1] * weight[:, None]
    image = (top[None] * (size - weight)[:, None, None] + bottom[None] * weight[:, None, None]) // size**2
    period, slope = random.randint(4, 17), random.randint(-2, 3)
    stripes = (weight[None] + slope * weight[:, None]) // period % 2 * random.randint(0, 21)
    image = image + (stripes + coarse[:size, :size])[..., None] + random.randint(-12, 13, (size, size, 1))
    return image.clip(0, 255).astype(np.uint8)


def _paint(random: np.random.RandomState, image: np.ndarray, mask: np.ndarray) -> None:
    """Fill the pixels with a colour well apart from what they show, with grain."""
    if not mask.any():
        return
    behind = image[mask].astype(np.int64).sum(0) // mask.sum()
    while True:
        colour = random.randint(0, 256, 3)
        if np.abs(colour - behind).sum() >= 180:
            break
    grain = random.randint(-15, 16, (*mask.shape, 1))
    image[mask] = (colour + grain[mask]).clip(0, 255)


def _annotation(number: int, image_id: int, label: int, mask: np.ndarray) -> dict:
    rows, cols = np.nonzero(mask)
    x, y = int(cols.min()), int(rows.min())
    return dict(id=number, image_id=image_id, category_id=label + 1, iscrowd=0, area=int(mask.sum()),
                bbox=[x, y, int(cols.max()) + 1 - x, int(rows.max()) + 1 - y],
                segmentation=dict(size=list(mask.shape), counts=run_lengths(mask)))


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: column by column, beginning with the number of zeros."""
    pixels = mask.ravel(order='F')
    borders = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff(np.concatenate(([0], borders, [pixels.size]))).tolist()
    return [0, *runs] if pixels[0] else runs
