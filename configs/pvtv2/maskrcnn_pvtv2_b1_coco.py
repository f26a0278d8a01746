_base_ = './maskrcnn_pvtv2_b0_coco.py'
model = dict(
    backbone=_base_.backbones.PVTv2.b1.settings,
    neck=dict(in_channels=_base_.backbones.PVTv2.b1.channels))
