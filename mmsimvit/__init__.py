"""SimViT and its sibling pyramid vision transformers as backbones for MMDetection, MMSegmentation and MMPreTrain.

Importing this package registers everything in it with mmengine's root registries.
"""
from .backbones import PyramidBackbone, SimViT
from .checkpoints import CheckpointError, convert_state_dict

__version__ = '0.1.0'
__all__ = ['CheckpointError', 'PyramidBackbone', 'SimViT', 'convert_state_dict']
