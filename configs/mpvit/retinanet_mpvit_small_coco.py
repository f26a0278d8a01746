_base_ = './retinanet_mpvit_tiny_coco.py'
pretrained = 'checkpoints/mpvit_small.pth'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 216, 288, 288]))
