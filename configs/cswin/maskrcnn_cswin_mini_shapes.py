_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores.
arch = dict(
    embed_dims=(32, 64, 128, 256),
    depths=(2, 2, 2, 2),
    num_heads=(2, 4, 8, 16),
    mlp_ratios=(4, 4, 4, 4),
    stripe_widths=(1, 2, 4))  # whole stripes in 128 x 128 pixels
model = dict(
    backbone=dict(type='CSWin', arch=arch, drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 128, 256]))
