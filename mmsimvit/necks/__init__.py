"""What lies between backbones and heads, where the libraries have nothing that fits."""
from .simple_pyramid import SimpleFeaturePyramid

__all__ = ['SimpleFeaturePyramid']
