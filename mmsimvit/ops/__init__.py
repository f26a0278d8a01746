"""Pure functions on tensors, each with several implementations that give the same numbers."""
from .backends import set_backend
from .ffn import conv_ffn_in_chunks
from .inhomogeneous_conv import inhomogeneous_conv
from .neighborhood_attention import central_attention, neighborhood_attention

__all__ = ['central_attention', 'conv_ffn_in_chunks', 'inhomogeneous_conv', 'neighborhood_attention', 'set_backend']
