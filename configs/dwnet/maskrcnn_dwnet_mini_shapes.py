_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores.
model = dict(
    backbone=dict(
        type='DWNet',
        arch='t',
        embed_dims=(32, 64, 128, 256),
        depths=(2, 2, 2, 2),
        channels_per_kernel=(1, 1, 1, 1),
        drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 128, 256]))
