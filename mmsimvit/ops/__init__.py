"""Pure functions on tensors, each with a reference that the tests compare with."""
from .central_attention import central_attention, central_attention_reference

__all__ = ['central_attention', 'central_attention_reference']
