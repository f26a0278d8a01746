"""What mmengine's FSDP strategy needs of us."""
import torch
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.dist import all_reduce
from mmengine.optim import OptimWrapper
from mmengine.registry import FUNCTIONS, OPTIM_WRAPPERS, STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..backbones import PyramidBackbone


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy`` that makes each block of a backbone here a unit of its own.

    A block is what :attr:`PyramidBackbone.block_type` says; what is in no block (patch embeddings, neck, heads) is one unit
    together.
    """
    blocks = tuple(backbone.block_type for backbone in PyramidBackbone.__subclasses__())
    return recurse or isinstance(module, blocks)


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's FSDP strategy, with the order of arguments that torch 2 has for the optimizer of a resumed training."""

    def load_optim_state_dict(self, state_dict: dict) -> None:
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict))


@OPTIM_WRAPPERS.register_module()
class ShardedOptimWrapper(OptimWrapper):
    """An optimizer whose gradients are clipped by their norm over all shards.

    mmengine's clips each process's shard by the norm of that shard alone.
    """

    def _clip_grad(self) -> None:
        settings = self.clip_grad_kwargs
        if self.clip_func is not torch.nn.utils.clip_grad_norm_ or settings.get('norm_type', 2.0) != 2.0:
            raise ValueError(f'sharded training clips gradients by their 2-norm alone, got clip_grad={settings}')
        grads = [p.grad for group in self.optimizer.param_groups for p in group['params'] if p.grad is not None]
        square = torch.nn.utils.get_total_norm(grads)**2 if grads else torch.zeros((), device=get_device())
        all_reduce(square)
        norm = square.sqrt()
        coefficient = (settings['max_norm'] / (norm + 1e-6)).clamp(max=1.0)  # as torch does
        for grad in grads:
            grad.mul_(coefficient)
        self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))
