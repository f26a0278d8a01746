_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores.
model = dict(
    backbone=dict(
        type='MPViT',
        arch='tiny',
        embed_dims=(32, 64, 96, 128),
        depths=(1, 1, 2, 1),
        num_paths=(2, 2, 2, 2),
        drop_path_rate=0.),
    neck=dict(in_channels=[64, 96, 128, 128]))
