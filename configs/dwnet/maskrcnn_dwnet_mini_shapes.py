_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores.
arch = dict(
    embed_dims=(32, 64, 128, 256),
    depths=(2, 2, 2, 2),
    mlp_ratios=(4, 4, 4, 4),
    kernels='static',
    channels_per_kernel=(1, 1, 1, 1),
    dense=True)
model = dict(
    backbone=dict(type='DWNet', arch=arch, drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 128, 256]))
