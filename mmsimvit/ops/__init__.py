"""Pure functions on tensors, each with several implementations that give the same numbers."""
from .backends import set_backend
from .central_attention import central_attention
from .ffn import conv_ffn_in_chunks
from .inhomogeneous_conv import inhomogeneous_conv

__all__ = ['central_attention', 'conv_ffn_in_chunks', 'inhomogeneous_conv', 'set_backend']
