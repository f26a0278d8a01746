"""MMSegmentation's images and label maps before a run."""
import glob
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.fileio import list_from_file
from PIL import Image
from rich.progress import Progress

from ..errors import DataError, warn_user
from .coco import some
from .headers import Header, read_header

IMAGE_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'}
DECODED = 500  # label maps, evenly over all, in which classes are sought


def check_label_maps(folders: dict[str, Path], settings: dict[str, Any], classes: list[str] | None, split: str,
                     is_relabelled: bool, lies: bool = False, listed: Path | None = None) -> None:
    """Look at the names of images, at the headers of these and of their label maps, and for a training at the classes in some.

    Args:
        folders: of images (``img_path``) and label maps (``seg_map_path``).
        settings: ``img_suffix``, ``seg_map_suffix``, ``reduce_zero_label`` and ``ignore_index`` of the data set.
        classes: names, if the config or the data set has them.
        split: whose data it is; classes are sought in that for training.
        is_relabelled: whether a part of the data set's classes is trained on, under new numbers.
        lies: whether images are loaded as they lie in their files, whatever their EXIF data says.
        listed: a file with the names of the images, without their suffix, where not all of the folder are meant.

    Raises:
        DataError: if there is no image or label map, or one that holds no classes or is of another size than its image.
    """
    for kind, key in (('img_path', 'img_suffix'), ('seg_map_path', 'seg_map_suffix')):
        if kind in folders and next(_files(folders[kind], settings[key]), None) is None:
            other = next((path.name for path in folders[kind].rglob('*.*')), 'no file')
            raise DataError(f'no file in {folders[kind]} ends with {settings[key]} (there is {other}); set {key} of the '
                            'dataset in the config')
    if 'img_path' not in folders:
        return
    image_suffix, map_suffix = settings['img_suffix'], settings['seg_map_suffix']
    images, maps = _images(folders['img_path'], image_suffix, listed), folders.get('seg_map_path')
    if listed is None:
        _count_other_suffixes(folders['img_path'], images, image_suffix, maps, map_suffix)
    if maps is None:
        return
    paths = [maps / (name.removesuffix(image_suffix) + map_suffix) for name in images]
    turned = []
    with ThreadPoolExecutor(16) as pool, Progress() as progress:
        pairs = [(folders['img_path'] / name, path) for name, path in zip(images, paths)]
        found_faults = pool.map(lambda pair: _fault_of(pair[0], pair[1], lies), pairs)
        for (image, path), (fault, is_turned) in progress.track(zip(pairs, found_faults), len(paths), description='label maps'):
            if fault:
                raise DataError(f'label map {path} {fault}')
            if is_turned:
                turned.append(image.name)
        if turned:
            warn_user(f'{len(turned)} of {len(paths)} images in {folders["img_path"]} are turned or mirrored by their EXIF data'
                      f' when they are loaded, and label maps must be for the turned image: {some(turned)}')
        if not classes or split != 'train' or is_relabelled:
            return
        decoded = paths[::max(len(paths) // DECODED, 1)]
        values = pool.map(_values_of, decoded)
        found = set().union(*progress.track(values, len(decoded), description='their classes'))
    first = int(bool(settings['reduce_zero_label']))
    absent = [name for number, name in enumerate(classes, first) if number not in found]
    if absent:
        ignored = f'; {settings["ignore_index"]} counts for none' if settings['ignore_index'] in found else ''
        warn_user(f'{len(absent)} of {len(classes)} classes have no pixel in the {len(decoded)} of {len(paths)} label maps '
                  f'in {maps} that were looked at: {some(absent)}. The values are {some(sorted(found))}{ignored}')


def _files(folder: Path, suffix: str) -> Iterator[str]:
    """Names below a folder, linked folders included, as MMSegmentation finds them."""
    return glob.iglob(f'**/*{glob.escape(suffix)}', root_dir=folder, recursive=True)


def _images(folder: Path, suffix: str, listed: Path | None) -> list[str]:
    """Names of images with their suffix; of a list, those that are there, as the others end the run with their own line."""
    if listed is None:
        return sorted(_files(folder, suffix))
    if not listed.is_file():
        raise DataError(f'annotation file {listed} does not exist; put it there, or change ann_file in the config')
    names = [line.strip() for line in list_from_file(str(listed))]
    lost = [name for name in names if not (folder / f'{name}{suffix}').is_file()]
    if lost or not names:
        raise DataError(f'{listed} lists {len(names)} images, and {len(lost)} of them are not in {folder} with the suffix '
                        f'{suffix}, such as {lost[:1]}; it must have names without suffix, one in a line')
    return [f'{name}{suffix}' for name in names]


def _count_other_suffixes(folder: Path, images: list[str], suffix: str, maps: Path | None, map_suffix: str) -> None:
    """Warn of images that MMSegmentation does not find, for their names end differently."""
    known = set(images)
    others = [name for name in _files(folder, '') if Path(name).suffix.lower() in IMAGE_SUFFIXES and name not in known
              and not (maps and (folder / name).is_relative_to(maps) and name.endswith(map_suffix))]
    if others:
        warn_user(f'{len(others)} of {len(others) + len(known)} images in {folder} are left out, for their names do not end '
                  f'with {suffix} (img_suffix): {some(sorted(others))}')


def _fault_of(image_path: Path, path: Path, lies: bool) -> tuple[str | None, bool]:
    """What is wrong with a label map beside its image, as far as headers say, and whether the image is turned when loaded."""
    if fault := _fault_of_map(path):
        return fault, False
    image, labels = read_header(image_path), read_header(path)
    if not (isinstance(image, Header) and isinstance(labels, Header)):
        return None, False  # of which loading it says more
    size = image.size if lies else image.loaded_size()
    if size[0] * labels.size[1] == size[1] * labels.size[0]:  # which a pipeline can resize to one size
        return None, image.orientation > 1 and not lies
    turned = ', which its EXIF data turns when it is loaded' if size != image.size else ''
    return (f'is {labels.size[0]} x {labels.size[1]} pixels, width and height, but its image {image_path} {size[0]} x '
            f'{size[1]}{turned}; it must have the size of the image'), False


def _fault_of_map(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            if image.mode in ('L', 'P', '1'):
                return None
            highest = image.getextrema()[1] if image.mode.startswith('I') else None
            if isinstance(highest, (int, float)) and highest <= 255:
                return None
            return (f'has pixels of the kind {image.mode}; each must be the number of its class, below 256, grey or with a '
                    'palette. Colours must be turned into numbers, once')
    except FileNotFoundError:
        return 'does not exist, but its image does; put it there, or take the image away'
    except Image.DecompressionBombError as error:
        return (f'has too many pixels to be opened ({error}); cut it and its image into tiles, as MMSegmentation\'s '
                'tools/dataset_converters do for aerial images')
    except (OSError, SyntaxError):  # the latter of broken PNG
        return 'cannot be read as an image; it may be cut short'


def _values_of(path: Path) -> set[int]:
    try:
        with Image.open(path) as image:
            return set(np.unique(np.asarray(image)).tolist())
    except (OSError, SyntaxError):  # of which loading it says more
        return set()
