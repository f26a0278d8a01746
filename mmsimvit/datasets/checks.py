"""Look at a config's data before a run, for what would otherwise end in a worker's stack trace, or in silence."""
import glob
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from PIL import Image
from rich.progress import Progress

from ..errors import DataError
from .unwrap import unwrap_dataset

COCO = ('CocoDataset', 'mmdet.CocoDataset')
SEGMENTATION = ('BaseSegDataset', 'ADE20KDataset')
# Why annotations are left out of a training.
NO_IMAGE = 'of no image'
NO_AREA = 'with boxes outside of their image or narrower than a pixel'
NO_POLYGON = 'whose masks have no polygon of three points'
CHECKED = (*COCO, *SEGMENTATION, 'CustomDataset', 'ImageNet')


def is_first_process() -> bool:
    """Whether this is a run's only process, or the one of rank 0, also before they have joined."""
    names = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    return int(next((os.environ[name] for name in names if name in os.environ), 0)) == 0


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check the files that a config's dataloaders name: folders, images, and COCO annotations with their classes.

    Local files of the types in ``CHECKED`` are looked at, by the first process of a distributed run; images are not
    decoded.

    Args:
        cfg: a whole config.
        splits: which of ``train``, ``val`` and ``test`` the run will use.

    Raises:
        DataError: naming the file and what to do.
    """
    if not is_first_process():
        return
    checked = []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in unwrap_dataset(loader['dataset'], 'Shapes') if loader else ():  # which makes its own files
            if dataset not in checked and dataset['type'] in CHECKED and not _is_remote(dataset):
                _check_dataset(dataset, split)
                checked.append(dataset)


def _is_remote(dataset: dict) -> bool:
    return bool(dataset.get('backend_args')) or any(
        '://' in str(dataset.get(name)) for name in ('data_root', 'data_prefix', 'ann_file'))


def _check_dataset(dataset: dict, split: str) -> None:
    root = dataset.get('data_root') or ''
    given = dataset.get('data_prefix') or {}
    prefixes = dict(given) if isinstance(given, dict) else {'img': given}
    setting = 'data_prefix' if given and Path(root).is_dir() else 'data_root'
    if dataset['type'] in ('CustomDataset', 'ImageNet'):  # MMPreTrain's
        prefixes = {kind: os.path.expanduser(path) for kind, path in prefixes.items()}
        if not prefixes and not dataset.get('ann_file'):
            by_split = dataset['type'] == 'ImageNet' and dataset.get('split')
            prefixes, setting = {'img': by_split or ''}, 'data_root or split' if by_split else 'data_root'
    folders = {kind: Path(root, path) for kind, path in prefixes.items()}
    for kind, folder in folders.items():
        _check_folder(folder, 'data_prefix' if Path(prefixes[kind]).is_absolute() else setting, split)
    if dataset['type'] in SEGMENTATION and not dataset.get('ann_file'):
        for kind, key, default in (('img_path', 'img_suffix', '.jpg'), ('seg_map_path', 'seg_map_suffix', '.png')):
            suffix = dataset.get(key, default)
            if kind in folders and next(_files(folders[kind], suffix), None) is None:
                other = next((path.name for path in folders[kind].rglob('*.*')), 'no file')
                raise DataError(f'no file in {folders[kind]} ends with {suffix} (there is {other}); set {key} of '
                                'the dataset in the config')
        if {'img_path', 'seg_map_path'} <= set(folders):
            _check_label_maps(folders['img_path'], dataset.get('img_suffix', '.jpg'), folders['seg_map_path'],
                              dataset.get('seg_map_suffix', '.png'))
    if dataset['type'] in COCO and dataset.get('ann_file'):
        classes = (dataset.get('metainfo') or {}).get('classes') or DATASETS.get('mmdet.CocoDataset').METAINFO['classes']
        with_mask = any(step.get('with_mask') for step in dataset.get('pipeline', ()))
        filters = dataset.get('filter_cfg') or {}
        loads = any(str(step.get('type')).endswith('LoadAnnotations') for step in dataset.get('pipeline', ()))
        annotated = split == 'val' or (split == 'train' and loads)
        _check_coco(Path(root, dataset['ann_file']), folders.get('img', Path(root)), classes, split, with_mask, annotated,
                    filters.get('min_size', 0), filters.get('filter_empty_gt', False))


def _check_folder(folder: Path, setting: str, split: str) -> None:
    advice = f'put the data there, or change {setting} of the {split} data in the config'
    if not folder.is_dir():
        raise DataError(f'folder {folder} does not exist; {advice}')
    try:
        empty = next(folder.iterdir(), None) is None
    except PermissionError:
        raise DataError(f'folder {folder} may not be read by this user; {advice}') from None
    if empty:
        raise DataError(f'folder {folder} is empty; {advice}')


def _files(folder: Path, suffix: str) -> Iterator[str]:
    """Names below a folder, linked folders included, as MMSegmentation finds them."""
    return glob.iglob(f'**/*{glob.escape(suffix)}', root_dir=folder, recursive=True)


def _check_label_maps(images: Path, image_suffix: str, maps: Path, map_suffix: str) -> None:
    """Look at the headers of all images' label maps, for kinds of pixels that hold no classes."""
    paths = [maps / (name.removesuffix(image_suffix) + map_suffix) for name in sorted(_files(images, image_suffix))]
    with ThreadPoolExecutor(16) as pool, Progress() as progress:
        for path, fault in zip(paths, progress.track(pool.map(_fault_of, paths), len(paths), description='label maps')):
            if fault:
                raise DataError(f'label map {path} {fault}')


def _fault_of(path: Path) -> str | None:
    """What is wrong with a label map, as far as its header says."""
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
    except (OSError, SyntaxError):  # the latter of broken PNG
        return 'cannot be read as an image; it may be cut short'


def _check_coco(path: Path, images: Path, classes: Sequence[str], split: str, with_mask: bool, annotated: bool, min_size: int,
                filter_empty: bool) -> None:
    """
    Args:
        annotated: whether annotations are loaded. COCO's test-dev has none, nor have images for semi-supervised training.
        min_size, filter_empty: which images MMDetection leaves out of a training.
    """
    try:
        with open(path, encoding='utf-8') as file:
            coco = json.load(file)
    except FileNotFoundError:
        raise DataError(f'annotation file {path} does not exist; put it there, or change ann_file in the config') from None
    except ValueError as error:
        raise DataError(f'annotation file {path} is no JSON ({error}); is it cut short?') from error
    required = ('images', 'annotations', 'categories') if annotated else ('images', 'categories')
    missing = [key for key in required
               if not isinstance(coco, dict) or not isinstance(coco.get(key), list)]
    if missing:
        raise DataError(f'annotation file {path} is not in COCO format: it has no list of {", ".join(missing)}')
    if not coco['images']:
        raise DataError(f'annotation file {path} lists no images; nothing could be trained or evaluated on it')
    names = [category['name'] for category in coco['categories']]
    if isinstance(classes, str) and Path(classes).is_file():
        classes = list_from_file(classes)  # as mmengine does
    if isinstance(classes, str):
        raise DataError(f'classes is the text {classes!r} and would be read letter by letter; write ({classes!r}, )')
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise DataError(f'no category of {path} is called {_some(unknown)}; it has '
                        f'{_some(names)}: set classes (metainfo=dict(classes=...)) in the config')
    if list(classes) != [name for name in names if name in classes]:
        # MMDetection numbers classes in the order of the file, whatever the order of the config.
        raise DataError(f'the classes {tuple(classes)} are in another order than in {path}, and names would be '
                        f'swapped; write them as {tuple(name for name in names if name in classes)}')
    wanted = {category['id']: category['name'] for category in coco['categories'] if category['name'] in classes}
    annotations = [item for item in coco.get('annotations', ()) if item.get('category_id') in wanted and not item.get('ignore')]
    sizes = _check_image_entries(path, coco['images'])
    annotations = _check_annotations(path, annotations, sizes, with_mask, split)
    if split == 'train':
        small = [name for name in sizes.values() if min(name[1:]) < min_size]
        if small:
            print_log(f'{len(small)} of {len(sizes)} images in {path} are left out, for they are narrower or lower than '
                      f'{min_size} pixels (filter_cfg.min_size): {_some([name for name, *_ in small])}', level=logging.WARNING)
        found = {wanted[item['category_id']] for item in annotations}
        if not found and filter_empty:
            raise DataError(f'{path} has no annotation of {_some(classes)}; there is nothing to learn from it')
        if annotated and len(found) < len(classes):
            print_log(f'{len(classes) - len(found)} of {len(classes)} classes have no annotation in {path} and will not '
                      f'be learnt: {_some([name for name in classes if name not in found])}', level=logging.WARNING)
    files = [image['file_name'] for image in coco['images']]
    with ThreadPoolExecutor(16) as pool:  # for disks in a network
        bytes_of = dict(zip(files, pool.map(lambda name: _size(images / name), files)))
    lost = [name for name, size in bytes_of.items() if size is None]
    if lost:
        raise DataError(f'image {images / lost[0]} of {path} does not exist ({len(lost)} of {len(coco["images"])} are '
                        'missing); put it there, or change data_prefix in the config')
    empty = [name for name, size in bytes_of.items() if size == 0]
    if empty:
        raise DataError(f'image {images / empty[0]} of {path} is empty ({len(empty)} of {len(bytes_of)} are); replace it, or '
                        'take it out of the annotations')


def _check_image_entries(path: Path, entries: list[dict]) -> dict[int, tuple[str, float, float]]:
    """Image id -> file name, width, height."""
    sizes: dict[int, tuple[str, float, float]] = {}
    for entry in entries:
        missing = [key for key in ('id', 'file_name', 'width', 'height') if key not in entry]
        if missing:
            raise DataError(f'image entry {entry.get("file_name", entry.get("id"))} of {path} has no {_some(missing)}; add it')
        if entry['id'] in sizes:
            raise DataError(f'images {sizes[entry["id"]][0]} and {entry["file_name"]} of {path} have the same id '
                            f'{entry["id"]}, and one would get the annotations of both; give each image an id of its own')
        if not _is_numbers([entry['width'], entry['height']]):
            raise DataError(f'image {entry["file_name"]} of {path} has the width {entry["width"]} and height '
                            f'{entry["height"]}; they must be numbers')
        sizes[entry['id']] = entry['file_name'], entry['width'], entry['height']
    return sizes


def _check_annotations(path: Path, annotations: list[dict], sizes: dict[int, tuple[str, float, float]], with_mask: bool,
                       split: str) -> list[dict]:
    """Refuse annotations that would end a run, or make it wrong; warn of those that MMDetection leaves out in silence.

    Returns:
        The others.
    """
    whole = []
    left_out: dict[str, list] = {NO_IMAGE: [], NO_AREA: [], NO_POLYGON: []}
    seen = set()
    for item in annotations:
        name = f'annotation {item.get("id")} of {path}'
        needed = ('id', 'image_id', 'bbox', 'area', *(('iscrowd', ) if split != 'train' else ()))
        missing = [key for key in needed if key not in item]
        if missing:
            raise DataError(f'{name} has no {_some(missing)}; add it (iscrowd is 0 for a single thing)')
        if item['id'] in seen:
            raise DataError(f'two annotations of {path} have the id {item["id"]}; give each one of its own')
        seen.add(item['id'])
        if item['image_id'] not in sizes:
            left_out[NO_IMAGE].append(item['id'])
            continue
        file_name, width, height = sizes[item['image_id']]
        box = item['bbox']
        if not _is_numbers(box) or len(box) != 4:
            raise DataError(f'{name} (image {file_name}) has the box {box}; it must be four finite numbers: x, y, '
                            'width, height')
        if not _is_numbers([item['area']]):
            raise DataError(f'{name} (image {file_name}) has the area {item["area"]}; it must be a finite number')
        x, y, w, h = box
        # As mmdet.datasets.CocoDataset.parse_data_info does.
        if min(w, h) < 1 or item['area'] <= 0 or min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            left_out[NO_AREA].append(item['id'])
        elif with_mask and not _check_mask(item.get('segmentation'), width, height, f'{name} (image {file_name})', split):
            left_out[NO_POLYGON].append(item['id'])
        else:
            whole.append(item)
    if split != 'train' and (flat := left_out[NO_POLYGON]):
        print_log(f'{len(flat)} of {len(annotations)} masks in {path} begin with a polygon of two points, which the evaluation '
                  f'takes for a box: {_some(flat)}', level=logging.WARNING)
    for reason, ids in left_out.items():
        if ids and split == 'train':
            print_log(f'{len(ids)} of {len(annotations)} annotations in {path} are left out, {reason}: {_some(ids)}',
                      level=logging.WARNING)
    return whole


def _check_mask(mask: object, width: float, height: float, name: str, split: str) -> bool:
    """Whether a COCO segmentation is one that MMDetection trains on."""
    if not mask:
        raise DataError(f'{name} has no segmentation, but the pipeline loads masks; use a detector without mask head, such as '
                        'RetinaNet, or annotations with masks')
    if isinstance(mask, dict):
        if list(mask.get('size', ())) != [height, width]:
            raise DataError(f'the mask of {name} is of {mask.get("size")} pixels, height and width, but its image of '
                            f'{[height, width]}; encode it for the whole image')
        return True
    if not (isinstance(mask, list) and all(_is_numbers(polygon) for polygon in mask)):
        raise DataError(f'the mask of {name} must be polygons, lists of finite numbers x1, y1, x2, y2 ..., or a run-length '
                        f'encoding with size and counts, got {str(mask)[:100]}')
    if split != 'train' and len(mask[0]) < 4:
        raise DataError(f'the mask of {name} begins with a polygon of {len(mask[0])} numbers, at which the evaluation would '
                        'fail; take it out')
    return (split == 'train' or len(mask[0]) > 4) and any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask)


def _is_numbers(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _some(names: Sequence) -> str:
    return ', '.join(map(repr, names[:5])) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
