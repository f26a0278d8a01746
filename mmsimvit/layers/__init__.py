"""Modules that several backbones share."""
from .attention import multi_head_attention
from .drop_path import DropPath
from .ffn import FFN
from .padding import crop, divide, pad_for_patches, pad_to_multiple, split_into_patches
from .patch_embed import PatchEmbed
from .position_bias import RelativePositionBias, fit_loaded, spread_rows
from .stage import Block, Stage

__all__ = ['FFN', 'Block', 'DropPath', 'PatchEmbed', 'RelativePositionBias', 'Stage', 'crop', 'divide', 'fit_loaded',
           'multi_head_attention', 'pad_for_patches', 'pad_to_multiple', 'split_into_patches', 'spread_rows']
