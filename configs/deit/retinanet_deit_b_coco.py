_base_ = './retinanet_deit_s_coco.py'
model = dict(
    backbone=_base_.backbones.DeiT.b.settings,
    neck=dict(in_channels=_base_.backbones.DeiT.b.channels))
