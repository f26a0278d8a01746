_base_ = '../_base_/retinanet_nuclei.py'
model = dict(
    backbone=dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=32, num_layers=[2, 2, 2, 2], drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 160, 256]))
