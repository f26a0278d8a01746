_base_ = './_base_/classifier_shapes.py'
# From random weights, minutes on two CPU cores.
model = dict(
    backbone=dict(type='SimViT', arch='micro', out_indices=(3, ), drop_path_rate=0.),
    head=dict(in_channels=256))
