_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores. The grids fill maps of 128 x 128 pixels.
model = dict(
    backbone=dict(
        type='HATNet',
        arch='tiny',
        embed_dims=(32, 64, 160, 256),
        depths=(2, 2, 2, 2),
        mlp_ratios=(4, 4, 4, 4),
        grid_sizes=(8, 8, 4, 1),
        drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 160, 256]))
train_cfg = dict(max_epochs=5)  # which takes less than ten minutes
