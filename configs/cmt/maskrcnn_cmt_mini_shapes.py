_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores.
model = dict(
    backbone=dict(
        type='CMT',
        arch='ti',
        embed_dims=(32, 64, 128, 256),
        depths=(2, 2, 2, 2),
        image_size=(128, 128),
        map_norms=(0, 1, 2, 3),
        drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 128, 256]))
train_cfg = dict(max_epochs=5)  # which takes less than ten minutes
