_base_ = '../_base_/retinanet_nuclei.py'
model = dict(
    backbone=dict(type='mmdet.ResNet', depth=18, num_stages=4, out_indices=(0, 1, 2, 3), norm_eval=False),
    neck=dict(in_channels=[64, 128, 256, 512]))
