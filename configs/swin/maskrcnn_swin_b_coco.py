_base_ = './maskrcnn_swin_s_coco.py'
# The drop path rate is that of the paper's Cascade Mask R-CNN.
model = dict(
    backbone=dict(**_base_.backbones.Swin.b.settings, drop_path_rate=0.3),
    neck=dict(in_channels=_base_.backbones.Swin.b.channels))
