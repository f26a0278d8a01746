"""What plugs into mmengine's Runner."""
from .hooks import CheckpointMatchHook
from .layer_decay import LayerDecayOptimWrapperConstructor, describe_param_groups
from .resume import allow_training_checkpoints, find_whole_checkpoint

__all__ = [
    'CheckpointMatchHook', 'LayerDecayOptimWrapperConstructor', 'allow_training_checkpoints', 'describe_param_groups',
    'find_whole_checkpoint'
]
