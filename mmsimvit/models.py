"""The model of a config: built, with weights, and what must fit together in it."""
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger, print_log
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from .backbones import Backbone
from .config_files import find_config
from .dry_run import is_a
from .errors import ModelError
from .weights import as_mmengine_reads, load_file, match_checkpoint, strip_module


def build_model(config: str | Path | Config) -> BaseModel:
    """A model as its constructors leave it.

    Args:
        config: the config, or its file or name, as ``find_config`` takes it.

    Raises:
        ConfigError: if there is no such config.
        ModelError: if it has no model, or one whose parts do not fit.
    """
    cfg = config if isinstance(config, Config) else Config.fromfile(find_config(str(config)))
    if not cfg.get('model'):
        raise ModelError(f'{cfg.filename} has no model; name the config of a detector, segmentor or classifier')
    if not cfg.model.get('type'):
        raise ModelError(f"the model of {cfg.filename} has no type; is the config's line _base_ = '...' missing?")
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as mmengine's Runner does
    MMLogger.get_instance('model').setLevel('WARNING')  # it becomes the current one: no line for each parameter
    check_heads(cfg.model)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        model = MODELS.build(cfg.model)
    check_channels(model)
    return model


def load_model(config: str | Path | Config, checkpoint: str | Path | None = None) -> tuple[BaseModel, dict]:
    """A model with its weights, in eval mode, on a GPU if there is one; and the ``meta`` of its checkpoint.

    Args:
        config: as for ``build_model``.
        checkpoint: its file; without it, the weights are those of ``init_cfg``, or random.

    Raises:
        ConfigError, ModelError: as ``build_model`` does.
        CheckpointError: if a checkpoint is missing, cut short or gives nothing to the model.
    """
    model, content = build_model(config), {} if checkpoint is None else load_file(str(checkpoint))
    if checkpoint is None:
        model.init_weights()
        if not model.backbone.init_cfg:
            print_log('no checkpoint: the weights are random')
    else:
        found = match_checkpoint(model, content)
        line = found.check_any(checkpoint, model)
        if not found.complete:
            print_log(line)
        load_state_dict(model, strip_module(as_mmengine_reads(content)), strict=False, logger='silent')
    return revert_sync_batchnorm(model).to(get_device()).eval(), content.get('meta') or {}


def find_dicts(node: object) -> Iterator[dict]:
    """All dicts in a nested config, to look at or to change."""
    if isinstance(node, dict):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from find_dicts(part)


def check_heads(model: dict) -> None:
    """Compare the lengths of a segmentor's settings, of which MMSegmentation says nothing but that they are wrong.

    Raises:
        ModelError: if a head has not one number of channels for each map.
    """
    for part in find_dicts(model):
        index, channels = part.get('in_index'), part.get('in_channels')
        if isinstance(index, (list, tuple)) and isinstance(channels, (list, tuple)) and len(index) != len(channels):
            raise ModelError(f"a head's in_index is {index} and its in_channels are {channels}; there must be one number of "
                             'channels for each map that it takes')


def check_channels(model: nn.Module) -> None:
    """Compare the maps of one of our backbones, their number and widths, with what follows it, before anything is computed.

    Raises:
        ModelError: if neck or heads take others; the message has the setting that fits.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, Backbone):
        return
    widths = list(backbone.out_channels)
    neck: Any = getattr(model, 'neck', None)
    given: Any
    index: Any
    if neck is not None and isinstance(getattr(neck, 'in_channels', None), (list, tuple)):
        if not set(neck.in_channels) <= set(widths):  # some necks take them from the last to the first, or not all
            raise ModelError(_other_channels(backbone, 'neck', neck.in_channels, widths))
        if len(neck.in_channels) != len(widths) and (is_a(neck, 'FPN') or is_a(neck, 'ChannelMapper')):  # which take all
            returned = tuple(backbone.out_indices[widths.index(width)] for width in neck.in_channels)
            raise ModelError(f'the neck takes {len(neck.in_channels)} maps, but this {type(backbone).__name__} returns '
                             f'{len(widths)}, of {widths} channels: backbone=dict(out_indices={returned}) or '
                             f'neck=dict(in_channels={widths})')
    elif is_a(model, 'BaseClassifier'):
        given = getattr(model.head, 'in_channels', None)
        if type(neck).__name__ in ('NoneType', 'GlobalAveragePooling') and isinstance(given, int) and given != widths[-1]:
            raise ModelError(_other_channels(backbone, 'head', given, widths[-1]))
    elif neck is None:
        for name in ('decode_head', 'auxiliary_head'):
            found: Any = getattr(model, name, None)
            heads: list[Any] = list(found) if isinstance(found, nn.ModuleList) else [found]
            for head in heads:
                index, given = getattr(head, 'in_index', None), getattr(head, 'in_channels', None)
                one = isinstance(index, int) and isinstance(given, int)
                several = isinstance(index, (list, tuple)) and isinstance(given, (list, tuple))
                indices = [index] if one else index if several else []
                if not all(-len(widths) <= i < len(widths) for i in indices):
                    raise ModelError(
                        f'the in_index of {name} is {index}, but this {type(backbone).__name__} returns {len(widths)} maps, '
                        f'counted from 0, of {widths} channels: set in_index and in_channels of {name} to some of them, or '
                        'out_indices of the backbone to more')
                if one and given != widths[index]:
                    raise ModelError(_other_channels(backbone, name, given, widths[index]))
                if several and not set(given) <= set(widths):
                    raise ModelError(_other_channels(backbone, name, given, [widths[i] for i in index]))


def _other_channels(backbone: Backbone, name: str, given: Any, fitting: int | list[int]) -> str:
    given = list(given) if isinstance(given, tuple) else given
    return (f'the in_channels of {name} are {given}, but the maps of this {type(backbone).__name__} have {fitting} channels: '
            f'{name}=dict(in_channels={fitting})')


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Compare the classes of a training's data with those of the heads.

    To MMDetection a class beyond those of the head is background, and would go unlearnt in silence; to the losses of the other
    libraries it is an index out of bounds. Heads of regions, depth or edges, MMDetection's of words, and MMSegmentation's with
    one output and a threshold for two classes are left alone.

    Raises:
        ModelError: if a head has fewer; the message has the setting that fits.
    """
    info = getattr(dataset, 'metainfo', None)
    classes = (info.get('thing_classes') or info.get('classes')) if isinstance(info, dict) else None
    others = is_a(model, 'RPN') or is_a(model, 'DepthEstimator') or hasattr(model, 'language_model')
    if not isinstance(classes, (list, tuple)) or others:
        return
    boxes, regions, head = (getattr(model, name, None) for name in ('bbox_head', 'roi_head', 'head'))
    if not is_a(model, 'BaseClassifier') or classes == getattr(type(dataset), 'METAINFO', {}).get('classes'):
        head = None  # a part of ImageNet still has the names of all its classes
    for name, found in (('bbox_head', boxes), ('roi_head.bbox_head', getattr(regions, 'bbox_head', None)),
                        ('roi_head.mask_head', getattr(regions, 'mask_head', None)), ('head', head),
                        ('decode_head', getattr(model, 'decode_head', None)),
                        ('auxiliary_head', getattr(model, 'auxiliary_head', None))):
        heads: list[Any] = list(found) if isinstance(found, nn.ModuleList) else [found]
        numbers = [part.num_classes for part in heads
                   if isinstance(getattr(part, 'num_classes', None), int) and not getattr(part, 'class_agnostic', False)
                   and type(part).__name__ != 'STDCHead'  # of edges
                   and not (len(classes) == 2 and getattr(part, 'threshold', None) is not None)]
        if numbers and min(numbers) < len(classes):
            known = ', '.join([*classes[:5], '...'][:len(classes)])
            each = '' if len(heads) == 1 else 'each '
            raise ModelError(f'{name} has num_classes={min(numbers)}, but the data has {len(classes)} classes ({known}), and '
                             f'the last have no place in it: set {each}model.{name}.num_classes to {len(classes)} in the '
                             'config')
        if numbers and max(numbers) > len(classes):
            print_log(f'{name} has num_classes={max(numbers)}, but the data has {len(classes)} classes: the others will not be '
                      'learnt', 'current', logging.WARNING)


def check_mixing(model: nn.Module) -> None:
    """Compare the classes of a classifier's mixup and cutmix with those of its head.

    Raises:
        ModelError: if they differ; the message has the setting that fits.
    """
    mixing = getattr(model, 'data_preprocessor', None)
    of_head: Any = getattr(getattr(model, 'head', None), 'num_classes', None)
    of_mixing: Any = getattr(mixing, 'num_classes', None)
    if getattr(mixing, 'batch_augments', None) is not None and isinstance(of_head, int) and of_mixing != of_head:
        raise ModelError(f'data_preprocessor has num_classes={of_mixing}, for mixup and the like, but head has '
                         f'num_classes={of_head}: set model.data_preprocessor.num_classes to {of_head} in the config')


def check_topk(model: nn.Module, metrics: Iterable[Any]) -> None:
    """Compare the accuracies that a classifier's validation asks for with its classes, before an epoch is trained for them.

    Raises:
        ModelError: if there are fewer classes; the message has the setting that fits.
    """
    number: Any = getattr(getattr(model, 'head', None), 'num_classes', None)
    for metric in metrics if is_a(model, 'BaseClassifier') and isinstance(number, int) else ():
        highest = max(getattr(metric, 'topk', None) or [0])
        if type(metric).__name__ == 'Accuracy' and highest > number:
            raise ModelError(f'the validation asks for top-{highest} accuracy, but the head has {number} classes: set '
                             'topk=(1, ) in the Accuracy of val_evaluator and test_evaluator in the config')
