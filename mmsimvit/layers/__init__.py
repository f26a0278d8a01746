"""Modules that several backbones share."""
from .drop_path import DropPath

__all__ = ['DropPath']
