_base_ = './maskrcnn_deit_s_coco_3x.py'
model = dict(
    backbone=_base_.backbones.DeiT.b.settings,
    neck=dict(in_channels=_base_.backbones.DeiT.b.channels))
