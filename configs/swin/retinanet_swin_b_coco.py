_base_ = './retinanet_swin_s_coco.py'
model = dict(
    backbone=dict(**_base_.backbones.Swin.b.settings, drop_path_rate=0.3),
    neck=dict(in_channels=_base_.backbones.Swin.b.channels[1:]))
