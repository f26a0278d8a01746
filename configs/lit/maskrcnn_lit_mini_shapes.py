_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores.
model = dict(
    backbone=dict(
        type='LIT',
        arch='s',
        embed_dims=(32, 64, 160, 256),
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 5, 8),
        mlp_ratios=(8, 8, 4, 4),
        bias_grids=(8, 4),  # of 128 x 128 pixels
        drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 160, 256]))
