"""Fine-tuning of pretrained models with new parts, which learn faster and before the others."""
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner
from torch import nn

MARK = 'is_pretrained'  # of groups of parameters


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class NewPartsOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, with lower learning rates for all but the new parts of a model, as DynamicViT is trained
    (2106.02034)::

        optim_wrapper = dict(
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            constructor='NewPartsOptimWrapperConstructor',
            paramwise_cfg=dict(new_parts=['predictors'], pretrained_lr_mult=0.01, bias_decay_mult=0., norm_decay_mult=0.))

    A parameter gets the rate that the default constructor would give it, times ``pretrained_lr_mult`` unless its name contains
    one of ``new_parts``. (A key of ``custom_keys`` that all other names contain would also turn off what is said of biases and
    norms.) ``HoldPretrainedHook`` knows the groups of the others by a mark.

    The arguments are mmengine's: ``optim_wrapper_cfg``, whose ``optimizer`` must have ``lr``, and ``paramwise_cfg`` with these
    two.

    Raises:
        ValueError: if one of these is missing, or no parameter is in one of ``new_parts``.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        self.new_parts = self.paramwise_cfg.get('new_parts')
        self.lr_mult = self.paramwise_cfg.get('pretrained_lr_mult')
        if not self.new_parts or not isinstance(self.lr_mult, (int, float)) or self.lr_mult < 0:
            raise ValueError("paramwise_cfg must have new_parts, such as ['predictors'], and pretrained_lr_mult, a factor such "
                             f'as 0.01; got {self.new_parts!r} and {self.lr_mult!r}')
        if self.base_lr is None:
            raise ValueError('the rates of pretrained parts are shares of optim_wrapper.optimizer.lr, which is not set')

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any) -> None:
        """Add a group for each parameter of a module to ``params``."""
        super().add_params(params, module, prefix, **kwargs)
        if prefix:
            return
        names = {parameter: name for name, parameter in module.named_parameters()}
        missing = [part for part in self.new_parts if not any(part in name for name in names.values())]
        if missing:
            raise ValueError(f'no parameter of {type(module).__name__} has {missing[0]!r} in its name, which paramwise_cfg has '
                             'in new_parts')
        for group in params:
            if not any(part in names[group['params'][0]] for part in self.new_parts):
                group['lr'] = group.get('lr', self.base_lr) * self.lr_mult
                group[MARK] = True


@HOOKS.register_module()
class HoldPretrainedHook(Hook):
    """Hold all but the new parts of a model as they are, while these learn: their learning rate is zero in the first epochs.

    The groups are those of ``NewPartsOptimWrapperConstructor``. Schedules go on as if nothing were held.

    Args:
        epochs: how many.

    Raises:
        ValueError: before training, if the optimizer has no such groups.
    """

    priority = 'NORMAL'  # so that rates are back before schedules (LOW) and checkpoints read them

    def __init__(self, epochs: int):
        self.epochs = epochs
        self.held: list[tuple[dict, float]] = []

    def before_train(self, runner: Runner) -> None:
        """Look for the groups."""
        if not any(group.get(MARK) for group in runner.optim_wrapper.param_groups):
            raise ValueError('HoldPretrainedHook holds groups of NewPartsOptimWrapperConstructor; set '
                             "optim_wrapper.constructor='NewPartsOptimWrapperConstructor'")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set rates to zero."""
        if runner.epoch < self.epochs:
            self.held = [(group, group['lr']) for group in runner.optim_wrapper.param_groups if group.get(MARK)]
            for group, _ in self.held:
                group['lr'] = 0.

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Set rates to what they were."""
        for group, rate in self.held:
            group['lr'] = rate
        self.held = []
