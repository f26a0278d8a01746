_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores.
model = dict(
    backbone=dict(
        type='DynamicSwin',
        arch='tiny',
        embed_dims=(32, 64, 128, 256),
        depths=(2, 2, 4, 2),
        num_heads=(1, 2, 4, 8),
        window_size=4,  # whole windows in 128 x 128 pixels
        predictors=(1, 2, 3),
        drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 128, 256]))
custom_hooks = [dict(type='RatioLossHook')]
