_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores.
model = dict(
    backbone=dict(
        type='CvT',
        arch='13',
        embed_dims=(32, 64, 128),
        depths=(2, 2, 4),
        num_heads=(1, 2, 4),
        map_norms=(0, 1, 2),
        drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 128], add_extra_convs='on_input'))  # the fourth level: a convolution of stride 2
