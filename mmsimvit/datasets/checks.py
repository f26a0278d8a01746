"""Look at a config's data before a run, for what would otherwise end in a worker's stack trace, or in silence."""
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from .errors import DataError

COCO = ('CocoDataset', 'mmdet.CocoDataset')
SEGMENTATION = ('BaseSegDataset', 'ADE20KDataset')
CHECKED = (*COCO, *SEGMENTATION, 'CustomDataset', 'ImageNet')


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check the files that a config's dataloaders name: folders, images, and COCO annotations with their classes.

    Local files of the types in :data:`CHECKED` are looked at, by the first process of a distributed run; images are not
    decoded.

    Args:
        cfg: a whole config.
        splits: which of ``train``, ``val`` and ``test`` the run will use.

    Raises:
        DataError: naming the file and what to do.
    """
    if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) > 0:
        return
    checked = []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in _leaf_datasets(loader['dataset']) if loader else ():
            if dataset not in checked and dataset['type'] in CHECKED and not _is_remote(dataset):
                _check_dataset(dataset, split)
                checked.append(dataset)


def _leaf_datasets(dataset: dict) -> Iterator[dict]:
    """The datasets inside wrappers; a generated one makes its own files."""
    if dataset['type'] == 'Shapes':
        return
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner is None:
        yield dataset
    for part in inner if isinstance(inner, (list, tuple)) else [inner] if inner else []:
        yield from _leaf_datasets(part)


def _is_remote(dataset: dict) -> bool:
    return bool(dataset.get('backend_args')) or '://' in f'{dataset.get("data_root")}{dataset.get("ann_file")}'


def _check_dataset(dataset: dict, split: str) -> None:
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    folders = {kind: Path(root, path) for kind, path in (prefix if isinstance(prefix, dict) else {'img': prefix}).items()}
    if not folders and dataset['type'] == 'CustomDataset':
        folders = {'img': Path(root)}
    for folder in folders.values():
        if not folder.is_dir():
            raise DataError(f'folder {folder} does not exist; put the data there, or change data_root in the config')
        if next(folder.iterdir(), None) is None:
            raise DataError(f'folder {folder} is empty; put the data there, or change data_root in the config')
    if dataset['type'] in SEGMENTATION and not dataset.get('ann_file'):
        for kind, key, default in (('img_path', 'img_suffix', '.jpg'), ('seg_map_path', 'seg_map_suffix', '.png')):
            suffix = dataset.get(key, default)
            if kind in folders and next(folders[kind].rglob(f'*{suffix}'), None) is None:
                other = next((path.name for path in folders[kind].rglob('*.*')), 'no file')
                raise DataError(f'no file in {folders[kind]} ends with {suffix} (there is {other}); set {key} of '
                                'the dataset in the config')
    if dataset['type'] in COCO and dataset.get('ann_file'):
        classes = (dataset.get('metainfo') or {}).get('classes') or DATASETS.get('mmdet.CocoDataset').METAINFO['classes']
        with_mask = any(step.get('with_mask') for step in dataset.get('pipeline', ()))
        _check_coco(Path(root, dataset['ann_file']), folders.get('img', Path(root)), classes, with_mask, split)


def _check_coco(path: Path, images: Path, classes: tuple[str, ...], with_mask: bool, split: str) -> None:
    try:
        with open(path, encoding='utf-8') as file:
            coco = json.load(file)
    except FileNotFoundError:
        raise DataError(f'annotation file {path} does not exist; put it there, or change ann_file in the config') from None
    except ValueError as error:
        raise DataError(f'annotation file {path} is no JSON ({error}); is it cut short?') from error
    # COCO's test-dev has no annotations.
    required = ('images', 'categories') if split == 'test' else ('images', 'annotations', 'categories')
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
                        f'{_some(names)}: set metainfo=dict(classes=...) in the config')
    if list(classes) != [name for name in names if name in classes]:
        # MMDetection numbers classes in the order of the file, whatever the order of the config.
        raise DataError(f'the classes {tuple(classes)} are in another order than in {path}, and names would be '
                        f'swapped; write them as {tuple(name for name in names if name in classes)}')
    wanted = {category['id']: category['name'] for category in coco['categories'] if category['name'] in classes}
    annotations = [item for item in coco.get('annotations', ()) if item.get('category_id') in wanted and not item.get('ignore')]
    if split == 'train':
        found = {wanted[item['category_id']] for item in annotations}
        if not found:
            raise DataError(f'{path} has no annotation of {_some(classes)}; there is nothing to learn from it')
        if len(found) < len(classes):
            print_log(f'{len(classes) - len(found)} of {len(classes)} classes have no annotation in {path} and will not '
                      f'be learnt: {_some([name for name in classes if name not in found])}', level=logging.WARNING)
    if with_mask:
        bare = next((item for item in annotations if not item.get('segmentation')), None)
        if bare is not None:
            raise DataError(f'annotation {bare.get("id")} of {path} has no segmentation, but the pipeline loads masks; '
                            'use a detector without mask head, such as RetinaNet, or annotations with masks')
    sizes = {image['file_name']: _size(images / image['file_name']) for image in coco['images']}
    lost = [name for name, size in sizes.items() if size is None]
    if lost:
        raise DataError(f'image {images / lost[0]} of {path} does not exist ({len(lost)} of {len(coco["images"])} are '
                        'missing); put it there, or change data_prefix in the config')
    empty = [name for name, size in sizes.items() if size == 0]
    if empty:
        raise DataError(f'image {images / empty[0]} of {path} is empty ({len(empty)} of {len(sizes)} are); replace it, or take '
                        'it out of the annotations')


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _some(names) -> str:
    return ', '.join(map(repr, names[:5])) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
