_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores.
arch = dict(
    embed_dims=(32, 64, 128, 256),
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    mlp_ratios=(3, 3, 3, 3),
    window_sizes=(8, 8, 8, 4),  # whole windows in 128 x 128 pixels
    layer_scale=None)
model = dict(
    backbone=dict(type='GCViT', arch=arch, drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 128, 256]))
