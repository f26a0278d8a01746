"""Modules that several backbones share."""
from .adapter import Adapter, as_map, conv_norm
from .attention import multi_head_attention
from .cross_shaped_attention import CrossShapedAttention
from .drop_path import DropPath
from .ffn import FFN, ConvFFN, InvertedResidual
from .importance import Gate, ImportancePredictor, check_ratios, count_kept, ratio_loss
from .init import draw_bias, init_as_pvt
from .padding import crop, divide, pad_for_patches, pad_to_multiple, split_into_patches
from .patch_embed import ConvEmbed, PatchEmbed, PatchMerging
from .position_bias import RelativePositionBias, fit_loaded, spread_rows
from .position_table import PositionTable, resize
from .stage import Block, LayerScale, Stage, recompute, run_block
from .window_attention import WindowAttention
from .windows import mask_padding, merge_windows, split_into_windows

__all__ = ['FFN', 'Adapter', 'Block', 'ConvEmbed', 'ConvFFN', 'CrossShapedAttention', 'DropPath', 'Gate', 'ImportancePredictor',
           'InvertedResidual', 'LayerScale', 'PatchEmbed', 'PatchMerging', 'PositionTable', 'RelativePositionBias', 'Stage',
           'WindowAttention', 'as_map', 'check_ratios', 'conv_norm', 'count_kept', 'crop', 'divide', 'draw_bias', 'fit_loaded',
           'init_as_pvt', 'mask_padding', 'merge_windows', 'multi_head_attention', 'pad_for_patches', 'pad_to_multiple',
           'ratio_loss', 'recompute', 'resize', 'run_block', 'split_into_patches', 'split_into_windows', 'spread_rows']
