"""Pure functions on tensors, each with several implementations that give the same numbers."""
from .backends import set_backend
from .central_attention import central_attention

__all__ = ['central_attention', 'set_backend']
