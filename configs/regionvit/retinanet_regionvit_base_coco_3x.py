_base_ = './retinanet_regionvit_small_coco_3x.py'
pretrained = 'checkpoints/regionvit_base.pth'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
