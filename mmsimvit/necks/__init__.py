"""What lies between backbones and heads, where the libraries have nothing that fits."""
from .query_pooling import QueryPooling
from .simple_pyramid import SimpleFeaturePyramid

__all__ = ['QueryPooling', 'SimpleFeaturePyramid']
