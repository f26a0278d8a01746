_base_ = './maskrcnn_gpvit_l1_coco_3x.py'
pretrained = 'checkpoints/gpvit_l2.pth'

model = dict(
    backbone=dict(arch='l2_det', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[348, 348, 348, 348]))
