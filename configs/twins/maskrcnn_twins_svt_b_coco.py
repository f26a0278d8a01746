_base_ = './maskrcnn_twins_svt_s_coco.py'
model = dict(
    backbone=_base_.backbones.Twins.svt_b.settings,
    neck=dict(in_channels=_base_.backbones.Twins.svt_b.channels))
