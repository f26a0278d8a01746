_base_ = './retinanet_mpvit_tiny_coco.py'
pretrained = 'checkpoints/mpvit_base.pth'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[224, 368, 480, 480]))
