_base_ = './retinanet_gpvit_l1_coco_3x.py'
pretrained = 'checkpoints/gpvit_l3.pth'

model = dict(
    backbone=dict(arch='l3_retina', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[432, 432, 432]))
