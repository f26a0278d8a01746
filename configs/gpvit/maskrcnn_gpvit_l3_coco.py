_base_ = './maskrcnn_gpvit_l1_coco.py'
pretrained = 'checkpoints/gpvit_l3.pth'

model = dict(
    backbone=dict(arch='l3_det', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[432, 432, 432, 432]))
