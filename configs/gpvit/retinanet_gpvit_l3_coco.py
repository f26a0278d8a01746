_base_ = './retinanet_gpvit_l1_coco.py'
pretrained = 'checkpoints/gpvit_l3.pth'

model = dict(
    backbone=dict(arch='l3_retina', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[432, 432, 432]))
