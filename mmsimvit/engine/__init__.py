"""What plugs into mmengine's Runner."""
from .hooks import CheckpointMatchHook
from .resume import allow_training_checkpoints, find_whole_checkpoint

__all__ = ['CheckpointMatchHook', 'allow_training_checkpoints', 'find_whole_checkpoint']
