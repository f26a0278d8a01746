_base_ = '../_base_/retinanet_nuclei.py'
model = dict(
    backbone=dict(type='SimViT', arch='micro', drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 160, 256]))
