"""One paper, one file; ``base`` holds the contract that all of them keep."""
from .base import PyramidBackbone
from .simvit import SimViT

__all__ = ['PyramidBackbone', 'SimViT']
