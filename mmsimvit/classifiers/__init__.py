"""Training methods for MMPreTrain, around any backbone: name this package in a config's ``custom_imports``."""
from .multi_resolution import MultiResolutionClassifier, MultiResolutionPreprocessor

__all__ = ['MultiResolutionClassifier', 'MultiResolutionPreprocessor']
