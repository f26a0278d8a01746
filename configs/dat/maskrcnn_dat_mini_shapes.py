_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores.
model = dict(
    backbone=dict(
        type='DAT',
        arch='tiny_det',
        embed_dims=(32, 64, 128, 256),
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        groups=(1, 1, 2, 4),
        window_size=4,  # 128 x 128 pixels need no padding
        bias_grids=(32, 16, 8, 4),
        drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 128, 256]))
