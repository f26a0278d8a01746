"""One paper, one file; ``base`` holds the contract that all of them keep."""
from .base import PyramidBackbone
from .dwnet import DWNet
from .gcvit import GCViT
from .lit import LIT
from .simvit import SimViT

__all__ = ['LIT', 'DWNet', 'GCViT', 'PyramidBackbone', 'SimViT']
