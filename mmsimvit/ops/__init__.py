"""Pure functions on tensors, each with several implementations that give the same numbers."""
from .backends import set_backend
from .deformable_attention import deformable_attention
from .ffn import conv_ffn_in_chunks
from .inhomogeneous_conv import inhomogeneous_conv
from .neighborhood_attention import central_attention, neighborhood_attention

__all__ = ['central_attention', 'conv_ffn_in_chunks', 'deformable_attention', 'inhomogeneous_conv', 'neighborhood_attention',
           'set_backend']
