"""What plugs into mmengine's Runner."""
from .allow_list import allow_training_checkpoints
from .fsdp import ShardedOptimWrapper, ShardedStrategy, wrap_blocks
from .hooks import CheckpointMatchHook, ClassesMatchHook, NonFiniteLossHook, RatioLossHook, ReseedHook
from .layer_decay import LayerDecayOptimWrapperConstructor, describe_param_groups
from .new_parts import HoldPretrainedHook, NewPartsOptimWrapperConstructor
from .runner import build_runner
from .work_dir import find_whole_checkpoint

__all__ = [
    'CheckpointMatchHook', 'ClassesMatchHook', 'HoldPretrainedHook', 'LayerDecayOptimWrapperConstructor',
    'NewPartsOptimWrapperConstructor', 'NonFiniteLossHook', 'RatioLossHook', 'ReseedHook', 'ShardedOptimWrapper',
    'ShardedStrategy', 'allow_training_checkpoints', 'build_runner', 'describe_param_groups', 'find_whole_checkpoint',
    'wrap_blocks'
]
