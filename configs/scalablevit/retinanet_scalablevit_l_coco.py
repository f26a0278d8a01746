_base_ = './retinanet_scalablevit_s_coco.py'
pretrained = 'checkpoints/scalablevit_l.pth'

model = dict(
    backbone=dict(arch='l', drop_path_rate=0.5, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
