"""The model of a config: built, with weights, and what must fit together in it."""
import copy
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
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .backbones import Backbone
from .config_files import find_config
from .datasets.unwrap import unwrap_dataset
from .dry_run import DryRun, dry_run, is_a
from .errors import ModelError
from .fitting import advise
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
        model = MODELS.build(copy.deepcopy(cfg.model))  # some models change their settings
        check_fit(model, cfg.model)
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


def check_fit(model: nn.Module, settings: dict | None = None) -> DryRun | None:
    """Run a model with one of our backbones on an image without memory: the channels and the strides of the maps must be those
    that neck and heads take.

    Args:
        model: of any of the libraries.
        settings: its config, in which settings that fit are looked for.

    Returns:
        What was seen; None if there is none of our backbones.

    Raises:
        ModelError: if they are not; the message has settings that were run and fit, where such are found.
    """
    if not any(isinstance(module, Backbone) for module in model.modules()) or isinstance(model, Backbone):
        return None
    backbone, mean = getattr(model, 'backbone', None), getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if isinstance(backbone, Backbone) and isinstance(mean, Tensor) and mean.numel() not in (1, backbone.in_channels):
        raise ModelError(f'the mean of data_preprocessor is of {mean.numel()} channels, but {type(backbone).__name__} has '
                         f'in_channels={backbone.in_channels}: give mean and std a number for each channel of the images')
    seen = dry_run(model)
    if seen.misfit is None:
        return seen
    if seen.misfit.kind == 'other':  # which may be of a dry run alone
        print_log(f'a dry run of this model ended: {seen.misfit.line}', 'current', logging.WARNING)
        return seen
    found = settings and advise(settings, seen, current_scope())
    raise ModelError(f'{seen.misfit.line}. The backbone gives maps of {seen.widths} channels and strides {seen.strides}'
                     + (f'; with this it fits, as a dry run says: {found}' if found else
                        '; python -m mmsimvit swap finds what fits, from a config with the old backbone'))


def current_scope() -> str:
    """The library in whose registries names are looked up first."""
    scope = DefaultScope.get_current_instance()
    return scope.scope_name if scope else 'mmengine'


def check_unread(model: nn.Module, settings: dict | None, seen: DryRun | None, stops: bool) -> None:
    """Look for norms of returned maps that nothing reads.

    Args:
        model: as it is trained.
        settings: its config.
        seen: a dry run of it.
        stops: whether parameters without gradient stop this training, as one of several processes.

    Raises:
        ModelError: if there are some and they stop it; otherwise a warning says so. Both have the setting that leaves them out.
    """
    backbone = next((module for module in model.modules() if isinstance(module, Backbone)), None)
    if not seen or seen.misfit or not backbone or not settings or not 0 < len(seen.read) < len(seen.widths):
        return
    found = advise(settings, seen, current_scope(), unread=True)
    if found is None:
        return
    unread = [place for place in range(len(seen.widths)) if place not in seen.read]
    line = (f'nothing reads the maps {unread} of the {len(seen.widths)} that {type(backbone).__name__} returns, and their '
            f'norms get no gradient, which stops training on several GPUs; with this it does not, as a dry run says: {found}')
    if stops:
        raise ModelError(line)
    print_log(line, 'current', logging.WARNING)


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


def check_losses(model: nn.Module) -> None:
    """Compare weights of classes in losses with the classes of their heads, and look for a softmax over one class.

    Raises:
        ModelError: if a loss has not one weight for each class (or one more, for the background), or learns nothing.
    """
    heads = {name: part for name, part in model.named_modules() if isinstance(getattr(part, 'num_classes', None), int)
             and not type(part).__name__.endswith('Loss')}
    for name, loss in model.named_modules():
        around = [head for head in heads if name.startswith(f'{head}.')]
        if not type(loss).__name__.endswith('Loss') or not around:
            continue
        of_head: Any = heads[max(around, key=len)]
        number, weights, place = of_head.num_classes, getattr(loss, 'class_weight', None), max(around, key=len)
        if isinstance(weights, (list, tuple)) and len(weights) not in (number, number + 1):
            raise ModelError(f'a loss of {place} has class_weight for {len(weights)} classes, but the head has num_classes='
                             f'{number}: give each class its weight, in the order of the classes')
        channels = number if is_a(model, 'BaseClassifier') else getattr(of_head, 'out_channels', None)
        softmax = type(loss).__name__ == 'CrossEntropyLoss' and not getattr(loss, 'use_sigmoid', False)
        if softmax and channels == 1 and (is_a(model, 'BaseClassifier') or is_a(model, 'BaseSegmentor')):
            raise ModelError(f'{place} takes a softmax over one class, which is always 1, so that nothing is learnt: name what '
                             'is not of the class as another, or set use_sigmoid=True in the loss')


def check_ignored(model: nn.Module, dataset: Any) -> None:
    """Compare the value of pixels that count for no class in the data of a segmentor and in its heads.

    Raises:
        ModelError: if they differ.
    """
    values = [leaf.ignore_index for leaf in unwrap_dataset(dataset) if hasattr(leaf, 'reduce_zero_label')]
    for name in ('decode_head', 'auxiliary_head') if values else ():
        found = getattr(model, name, None)
        for head in found if isinstance(found, nn.ModuleList) else [found]:
            value: Any = getattr(head, 'ignore_index', None)
            if isinstance(value, int) and value not in values:
                raise ModelError(f'{name} has ignore_index={value}, but the data set {values[0]}, for pixels of no class: set '
                                 'the same value in the data sets, in all heads and in IoUMetric')


def check_image_channels(model: nn.Module, batch: Any) -> None:
    """Compare the channels of images with those of the backbone.

    Raises:
        ModelError: if they differ.
    """
    backbone = getattr(model, 'backbone', None)
    leaves = tree_leaves(batch.get('inputs')) if isinstance(batch, dict) else []
    images = [image for image in leaves if isinstance(image, Tensor)]
    if isinstance(backbone, Backbone) and images and images[0].dim() in (3, 4):
        channels = images[0].shape[-3]
        if channels != backbone.in_channels:
            raise ModelError(f'images have {channels} channels, but {type(backbone).__name__} has in_channels='
                             f'{backbone.in_channels}: set in_channels of the backbone and mean and std of data_preprocessor, '
                             "or color_type of LoadImageFromFile ('color' for 3, 'grayscale' for 1, 'unchanged' for all)")


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
