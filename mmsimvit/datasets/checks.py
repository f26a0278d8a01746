"""Look at a config's data before a run, for what would otherwise end in a worker's stack trace, or in silence."""
import inspect
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS, DefaultScope

from ..errors import DataError
from .class_folders import check_class_folders, check_class_list
from .coco import CocoFile, check_coco, ignores_exif
from .label_maps import check_label_maps
from .unwrap import unwrap_dataset

# What reads the files; a subclass that reads them in its own way is not looked at.
READERS = {'CocoDataset': ('load_data_list', 'parse_data_info'), 'BaseSegDataset': ('load_data_list', ),
           'CustomDataset': ('load_data_list', )}
SEGMENTATION_SETTINGS = ('img_suffix', 'seg_map_suffix', 'reduce_zero_label', 'ignore_index')


def is_first_process() -> bool:
    """Whether this is a run's only process, or the one of rank 0, also before they have joined."""
    names = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    return int(next((os.environ[name] for name in names if name in os.environ), 0)) == 0


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check the files that a config's dataloaders name: folders, images, annotations and classes.

    Local files are looked at, of data sets that read them as those of ``READERS`` do, by the first process of a distributed
    run. Images are not decoded, some label maps are.

    Args:
        cfg: a whole config.
        splits: which of ``train``, ``val`` and ``test`` the run will use.

    Raises:
        DataError: naming the file and what to do.
    """
    if not is_first_process():
        return
    checked = []
    files: list[CocoFile] = []
    folders: dict[Path, list[str]] = {}
    head = (cfg.get('model') or {}).get('head') or {}
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in unwrap_dataset(loader['dataset'], 'Shapes') if loader else ():  # which makes its own files
            kind = _class_of(dataset['type'], cfg.get('default_scope'))
            reader = next((base.__name__ for base in kind.__mro__ if base.__name__ in READERS), None)
            if dataset in checked or reader is None or _is_remote(dataset) or not _reads_as(kind, reader):
                continue
            checked.append(dataset)
            classes = _classes(dataset, kind)
            found = _folders(dataset, reader, split)
            if reader == 'CocoDataset' and dataset.get('ann_file'):
                check_coco(dataset, found.get('img', Path(dataset.get('data_root') or '')), classes or [], split, files)
            elif reader == 'BaseSegDataset':
                listed = Path(dataset.get('data_root') or '', dataset['ann_file']) if dataset.get('ann_file') else None
                check_label_maps(found, {name: _default(dataset, kind, name) for name in SEGMENTATION_SETTINGS}, classes, split,
                                 is_relabelled=classes != _own_classes(kind, classes),
                                 lies=ignores_exif(dataset), listed=None if listed and listed.is_dir() else listed)
            elif reader == 'CustomDataset' and dataset.get('with_label', True) and dataset.get('split') != 'test':
                path = _class_list(dataset)
                if path:
                    check_class_list(path, len(classes) if classes else head.get('num_classes'), split)
                else:
                    check_class_folders(found['img'], classes, split, folders, _default(dataset, kind, 'extensions'))


def _class_of(kind: str | type, scope: str | None) -> type:
    """The class of a data set's config, which is named, or in pure Python configs is there itself."""
    if isinstance(kind, type):
        return kind
    with DefaultScope.overwrite_default_scope(scope), DATASETS.switch_scope_and_registry(None) as registry:
        found = registry.get(kind)
    return found if isinstance(found, type) else object  # an unknown one ends the run with its own line


def _reads_as(kind: type, reader: str) -> bool:
    base = next(base for base in kind.__mro__ if base.__name__ == reader)
    return all(getattr(kind, name) is getattr(base, name) for name in READERS[reader])


def _default(dataset: dict, kind: type, name: str) -> Any:
    """A setting of a data set, or else what its class, or the one that it inherits from, has for it."""
    if name in dataset:
        return dataset[name]
    arguments = [inspect.signature(base).parameters for base in kind.__mro__]
    return next(known[name].default for known in arguments if name in known)


def _classes(dataset: dict, kind: type) -> list[str] | None:
    given = (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')
    if isinstance(given, str) and Path(given).is_file():
        given = list_from_file(given)  # as mmengine does
    if isinstance(given, str):
        raise DataError(f'classes is the text {given!r} and would be read letter by letter; write ({given!r}, )')
    return list(given) if given else _own_classes(kind, None)


def _own_classes(kind: type, default: list[str] | None) -> list[str] | None:
    """The classes that a data set has by itself."""
    classes = getattr(kind, 'METAINFO', {}).get('classes')
    return list(classes) if classes else default


def _class_list(dataset: dict) -> Path | None:
    """The file of labels of an MMPreTrain data set; ImageNet finds one by itself."""
    if dataset.get('ann_file'):
        return Path(dataset.get('data_root') or '', dataset['ann_file'])
    path = Path(dataset.get('data_root') or '', f'meta/{dataset.get("split")}.txt')
    return path if dataset.get('split') and path.is_file() else None


def _is_remote(dataset: dict) -> bool:
    return bool(dataset.get('backend_args')) or any(
        '://' in str(dataset.get(name)) for name in ('data_root', 'data_prefix', 'ann_file'))


def _folders(dataset: dict, reader: str, split: str) -> dict[str, Path]:
    """The folders of a data set by their kind, each of which is there and not empty."""
    root = dataset.get('data_root') or ''
    given = dataset.get('data_prefix') or {}
    prefixes = dict(given) if isinstance(given, dict) else {'img': given}
    setting = 'data_prefix' if given and Path(root).is_dir() else 'data_root'
    if reader == 'CustomDataset':  # MMPreTrain's
        prefixes = {'img' if kind == 'img_path' else kind: os.path.expanduser(path) for kind, path in prefixes.items()}
        if not prefixes and not dataset.get('ann_file'):
            by_split = dataset.get('split')  # of ImageNet
            prefixes, setting = {'img': by_split or ''}, 'data_root or split' if by_split else 'data_root'
    folders = {kind: Path(root, path) for kind, path in prefixes.items()}
    for kind, folder in folders.items():
        _check_folder(folder, 'data_prefix' if Path(prefixes[kind]).is_absolute() else setting, split)
    return folders


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
