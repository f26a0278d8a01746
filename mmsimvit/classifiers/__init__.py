"""Training methods for MMPreTrain, around any backbone: name this package in a config's ``custom_imports``."""
from .dynamic import DynamicClassifier, NormedPooling, TokenClsHead
from .multi_resolution import MultiResolutionClassifier, MultiResolutionPreprocessor

__all__ = ['DynamicClassifier', 'MultiResolutionClassifier', 'MultiResolutionPreprocessor', 'NormedPooling',
           'TokenClsHead']
