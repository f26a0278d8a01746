"""SimViT and its sibling pyramid vision transformers as backbones for MMDetection, MMSegmentation and MMPreTrain.

Importing this package registers everything in it with mmengine's root registries.
"""
from .backbones import PyramidBackbone, SimViT
from .checkpoints import CheckpointError, convert_state_dict
from .datasets import DataError, generate_shapes
from .engine import allow_training_checkpoints

allow_training_checkpoints()

__version__ = '0.1.0'
__all__ = ['CheckpointError', 'DataError', 'PyramidBackbone', 'SimViT', 'convert_state_dict', 'generate_shapes']
