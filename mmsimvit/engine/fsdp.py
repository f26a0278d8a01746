"""What mmengine's FSDP strategy needs of us."""
import copy
from typing import Any, cast

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import FUNCTIONS, OPTIM_WRAPPERS, STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from ..backbones import Backbone
from ..models import check_fit

SHARDED_STRATEGY = 'mmsimvit.engine.ShardedStrategy'  # as configs name it


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy`` that makes each block of a backbone here a unit of its own.

    Blocks are those of the backbone's ``layer_order``; what is in none (patch embeddings, neck, heads) is one unit together.
    """
    if recurse:  # FSDP asks so of a model before it asks of what is in it, one module at a time
        for block in module.find_blocks() if isinstance(module, Backbone) else ():
            block.is_fsdp_unit = True  # type: ignore[assignment]
        return True
    return getattr(module, 'is_fsdp_unit', False)


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's FSDP strategy, with the order of arguments that torch 2 has for the optimizer of a resumed training, with
    clipping over all shards, and with synchronized batch norms.

    Args:
        sync_bn: as a config's ``sync_bn`` for other trainings, ``torch`` or ``mmcv``.
        **kwargs: those of mmengine's strategy.
    """

    def __init__(self, *, sync_bn: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.sync_bn = sync_bn

    def convert_model(self, model: nn.Module) -> nn.Module:
        """Synchronize the batch norms, if ``sync_bn`` says so."""
        return convert_sync_batchnorm(model, self.sync_bn) if self.sync_bn else model

    def _wrap_model(self, model: nn.Module) -> None:
        return super()._wrap_model(self.convert_model(model))

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Take this process's part of the state of an optimizer that was saved whole."""
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict))

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """As mmengine does, after which a dry run says whether backbone, neck and heads fit."""
        settings = copy.deepcopy(model) if isinstance(model, dict) else None  # some models change theirs
        built = super().build_model(model)
        check_fit(built, settings)
        return built

    def build_optim_wrapper(self, optim_wrapper: Optimizer | OptimWrapper | dict,
                            model: nn.Module | None = None) -> OptimWrapper:
        """As mmengine does; a ``ShardedOptimWrapper`` gets to know the sharded model."""
        built = super().build_optim_wrapper(optim_wrapper, model)
        if isinstance(built, ShardedOptimWrapper):
            built.model = cast(FullyShardedDataParallel, model)
        return built


@OPTIM_WRAPPERS.register_module()
class ShardedOptimWrapper(OptimWrapper):
    """An optimizer whose gradients are clipped by their norm over all shards.

    mmengine's clips each process's shard by the norm of that shard alone.

    Attributes:
        model: the sharded model, which ``ShardedStrategy`` sets.

    Raises:
        ValueError: in a step, if ``clip_grad`` clips by something else than the norm.
    """
    model: FullyShardedDataParallel

    def _clip_grad(self) -> None:
        if self.clip_func is not torch.nn.utils.clip_grad_norm_:
            raise ValueError(f'sharded training clips gradients by their norm alone, got clip_grad={self.clip_grad_kwargs}')
        settings = {key: value for key, value in self.clip_grad_kwargs.items() if key in ('max_norm', 'norm_type')}
        self.message_hub.update_scalar(f'train/{self.grad_name}', float(self.model.clip_grad_norm_(**settings)))
