_base_ = './maskrcnn_regionvit_small_coco.py'
pretrained = 'checkpoints/regionvit_base.pth'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
