"""Layer-wise learning rate decay: the nearer a layer is to the image, the lower its rate."""
from collections.abc import Mapping
from itertools import groupby
from logging import LogRecord
from typing import Any

from mmengine.logging import MMLogger, print_log
from mmengine.model import BaseModule
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, with rates that fall from the heads to the first layer of the backbone.

    A parameter gets the learning rate that the default constructor would give it, times
    ``layer_decay_rate ** (num_layers - 1 - depth)``. Depth and number of layers are what the backbone's
    ``get_layer_depth(param_name, prefix)`` says (MMPreTrain's protocol); necks and heads are of the last layer, factor 1.
    It takes detectors, segmentors and classifiers, and any model whose backbones are modules of that name::

        optim_wrapper = dict(
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
            constructor='LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.8))

    What the backbone's ``no_weight_decay()`` names is trained without weight decay, unless a key of ``custom_keys`` with
    a ``decay_mult`` of its own matches it. Parameters with equal options share one group, which notes their depths under
    ``layers``; frozen ones are in none. Schedulers scale all groups alike, but an ``eta_min`` is the same floor for all:
    use ``eta_min_ratio``.

    The arguments are mmengine's: ``optim_wrapper_cfg``, whose ``optimizer`` must have ``lr``, and ``paramwise_cfg``, with
    ``layer_decay_rate``, above 0 and at most 1; at 1 all rates are equal, and any model will do.

    Raises:
        ValueError: for a rate out of range, below 1 for a backbone without ``get_layer_depth`` or a model without backbone, or
            for a parameter that is found twice without ``bypass_duplicate``.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        self.decay_rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(self.decay_rate, (int, float)) or not 0 < self.decay_rate <= 1:
            raise ValueError('paramwise_cfg.layer_decay_rate must be a number above 0 and at most 1, such as 0.8, '
                             f'got {self.decay_rate!r}')
        if self.base_lr is None:
            raise ValueError('the learning rates of the layers are parts of optim_wrapper.optimizer.lr, which is not set')

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer of a model, and log its groups."""
        logger = MMLogger.get_current_instance()
        logger.addFilter(_is_not_of_one_parameter)
        try:
            optim_wrapper = super().__call__(model)
        finally:
            logger.removeFilter(_is_not_of_one_parameter)
        frozen = [p for p in model.parameters() if not p.requires_grad]
        print_log(f'layer-wise learning rate decay {self.decay_rate}:\n{describe_param_groups(optim_wrapper)}\nfrozen, in no '
                  f'group: {len(frozen)} tensors, {sum(p.numel() for p in frozen):,} parameters', logger='current')
        return optim_wrapper

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any) -> None:
        """Add the groups of a module to ``params``; the whole model's, which has no prefix, decayed and merged."""
        if prefix:
            super().add_params(params, module, prefix, **kwargs)
            return
        backbones = _find_backbones(module, self.decay_rate)
        undecayed = {prefix + name for prefix, backbone in backbones.items()
                     if hasattr(backbone, 'no_weight_decay') for name in backbone.no_weight_decay()}
        names = {param: name for name, param in module.named_parameters()}
        singles: list[dict] = []  # one parameter each
        super().add_params(singles, module, **kwargs)
        seen: set[nn.Parameter] = set()
        merged: list[dict[str, Any]] = []
        for group in singles:
            param, = group.pop('params')
            name = names[param]
            if param in seen:
                raise ValueError(f'{name} is found twice in {type(module).__name__}; paramwise_cfg=dict(bypass_duplicate=True) '
                                 'trains it once')
            seen.add(param)
            depth, num_layers = _get_layer_depth(backbones, name)
            group['lr'] = group.get('lr', self.base_lr) * self.decay_rate**(num_layers - 1 - depth)
            if name in undecayed and 'decay_mult' not in group:
                group['weight_decay'] = 0.
            elif self.base_wd is not None:
                group.setdefault('weight_decay', self.base_wd)
            equal = next((other for other in merged if other['options'] == group), None)
            if equal is None:
                equal = dict(options=group, params=[], depths=set())
                merged.append(equal)
            equal['params'].append(param)
            equal['depths'].add(depth)
        params += [dict(params=group['params'], layers=_as_ranges(group['depths']), **group['options']) for group in merged]


def describe_param_groups(optim_wrapper: OptimWrapper) -> str:
    """A table of an optimizer's groups: depths, current learning rate, weight decay, tensors, parameters.

    Args:
        optim_wrapper: any wrapper of one optimizer; groups that ``LayerDecayOptimWrapperConstructor`` did not make
            have ``-`` for their depths.
    """
    rows = [('depth', 'lr', 'weight decay', 'tensors', 'parameters')]
    for group in optim_wrapper.optimizer.param_groups:
        decay = group.get('weight_decay')
        rows.append((group.get('layers', '-'), f'{group["lr"]:.4g}', '-' if decay is None else f'{decay:g}',
                     str(len(group['params'])), f'{sum(p.numel() for p in group["params"]):,}'))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def _find_backbones(model: nn.Module, decay_rate: float) -> dict[str, BaseModule]:
    """The outermost modules called ``backbone``, by the prefix of their parameters' names; below 1 they must have depths."""
    found: dict[str, BaseModule] = {}
    for name, module in model.named_modules():
        if name.split('.')[-1] == 'backbone' and not name.startswith(tuple(found)):
            found[f'{name}.'] = module
    lacking = next((module for module in found.values() if not hasattr(module, 'get_layer_depth')), None)
    if decay_rate == 1:
        return found
    if lacking is not None:
        raise ValueError(
            f'{type(lacking).__module__}.{type(lacking).__name__} has no get_layer_depth(param_name, prefix), by which layers '
            'are ordered; take a backbone that has it, such as SimViT or mmpretrain.SwinTransformer, or leave out '
            "constructor='LayerDecayOptimWrapperConstructor'")
    if not found:
        raise ValueError(f'{type(model).__name__} has no module called backbone, whose layers could be ordered; leave out '
                         "constructor='LayerDecayOptimWrapperConstructor'")
    return found


def _get_layer_depth(backbones: Mapping[str, BaseModule], name: str) -> tuple[int, int]:
    if not backbones or not all(hasattr(backbone, 'get_layer_depth') for backbone in backbones.values()):
        return 0, 1  # all rates are equal
    for prefix, backbone in backbones.items():
        if name.startswith(prefix):
            # Whatever lies before it (a student's or teacher's name): MMPreTrain's ResNet knows this prefix alone.
            return backbone.get_layer_depth(f'backbone.{name.removeprefix(prefix)}', 'backbone.')
    _, num_layers = next(iter(backbones.values())).get_layer_depth('head', 'backbone.')
    return num_layers - 1, num_layers


def _as_ranges(numbers: set[int]) -> str:
    """``{0, 1, 2, 5}`` -> ``'0-2, 5'``."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])]
    return ', '.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)


def _is_not_of_one_parameter(record: LogRecord) -> bool:
    """The default constructor writes a line for each parameter; the table says it in fewer."""
    message = record.getMessage()
    return not message.startswith('paramwise_options') and 'is skipped since its requires_grad' not in message
