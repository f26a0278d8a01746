_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores.
model = dict(
    backbone=dict(
        type='CSWin',
        arch='tiny',
        embed_dims=(32, 64, 128, 256),
        depths=(2, 2, 2, 2),
        stripe_widths=(1, 2, 4),  # whole stripes in 128 x 128 pixels
        drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 128, 256]))
