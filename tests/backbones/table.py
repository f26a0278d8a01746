"""The backbones that tests/backbones/test_contract.py is about. A new backbone adds a row."""
from functools import partial

from mmsimvit import LIT, DWNet, GCViT, SimViT

# A small variant of each, and the depths of its parameters' layers.
SMALL = dict(embed_dims=(8, 16, 24, 32), depths=(1, 2, 1, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2))
WITHOUT_HEADS = {key: value for key, value in SMALL.items() if key != 'num_heads'}
BACKBONES = {
    'SimViT': (
        partial(SimViT, SMALL),
        {'stages.0.patch_embed.proj.weight': 0, 'stages.0.blocks.0.attn.q.bias': 1, 'stages.0.norm.weight': 1,
         'stages.1.patch_embed.norm.bias': 1, 'stages.1.blocks.0.norm1.weight': 2, 'stages.1.blocks.1.ffn.fc1.weight': 3,
         'stages.3.blocks.0.attn.kv.weight': 5, 'stages.3.norm.bias': 5}),
    'LIT': (
        partial(LIT, dict(**SMALL, position_grids=None, bias_grids=(4, 3), norm_eps=1e-5, map_norms=(1, 2, 3))),
        {'stages.0.patch_embed.norm.weight': 0, 'stages.0.blocks.0.norm2.bias': 1, 'stages.1.patch_embed.offset.weight': 1,
         'stages.1.blocks.1.ffn.fc1.weight': 3, 'stages.1.norm.weight': 3, 'stages.2.patch_embed.norm.weight': 3,
         'stages.3.blocks.0.attn.position_bias.table': 5}),
    'LIT-Ti': (
        partial(LIT, dict(**SMALL, position_grids=(16, 8, 4, 2), bias_grids=None, norm_eps=1e-6, map_norms=())),
        {'stages.0.patch_embed.1.embedding': 0, 'stages.1.patch_embed.1.embedding': 1, 'stages.3.blocks.0.attn.qkv.bias': 5}),
    'GCViT': (
        partial(GCViT, dict(**SMALL, window_sizes=(7, 4, 3, 2), layer_scale=0.5)),
        {'stages.0.patch_embed.downsample.reduction.weight': 0, 'stages.0.blocks.0.scale1.gamma': 1,
         'stages.1.global_query.mbconvs.0.se.fc1.weight': 1, 'stages.1.blocks.1.attn.kv.weight': 3, 'stages.1.norm.bias': 3,
         'stages.2.patch_embed.mbconv.dwconv.weight': 3, 'stages.3.blocks.0.attn.position_bias.table': 5}),
    'DWNet': (
        partial(DWNet, dict(**WITHOUT_HEADS, kernels='static', channels_per_kernel=(1, 1, 1, 1), dense=True)),
        {'stages.0.patch_embed.norm.bias': 0, 'stages.0.blocks.0.conv.dwconv.weight': 1,
         'stages.1.patch_embed.reduction.weight': 1, 'stages.1.blocks.1.bn.weight': 3, 'stages.1.norm.weight': 3,
         'stages.3.blocks.0.conv.bn3.bias': 5}),
    'dynamic DWNet': (
        partial(DWNet, dict(**WITHOUT_HEADS, kernels='dynamic', channels_per_kernel=(1, 1, 1, 1), dense=True)),
        {'stages.0.blocks.0.conv.dwconv.bias': 1, 'stages.3.blocks.0.conv.dwconv.conv2.bias': 5}),
    'inhomogeneous DWNet': (
        partial(DWNet, dict(**WITHOUT_HEADS, kernels='inhomogeneous', channels_per_kernel=(2, 4, 6, 8), dense=False)),
        {'stages.0.blocks.0.conv.dwconv.conv1.bias': 1, 'stages.3.blocks.0.conv.dwconv.bn.bias': 5}),
}
# Export to ONNX takes long; these have every part that is traced in its own way. (SimViT: tests/tools/test_export_onnx.py.)
TRACED = ['LIT', 'GCViT', 'dynamic DWNet', 'inhomogeneous DWNet']
# Whose first convolutions overlap, so that pixels beyond the border are not the same as more pixels of zeros.
OVERLAPPING = ['GCViT']
