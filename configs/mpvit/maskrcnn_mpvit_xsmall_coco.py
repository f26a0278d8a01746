_base_ = './maskrcnn_mpvit_tiny_coco.py'
pretrained = 'checkpoints/mpvit_xsmall.pth'

model = dict(
    backbone=dict(arch='xsmall', drop_path_rate=0.1, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 192, 256, 256]))
