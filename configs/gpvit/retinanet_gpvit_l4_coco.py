_base_ = './retinanet_gpvit_l1_coco.py'
pretrained = 'checkpoints/gpvit_l4.pth'

model = dict(
    backbone=dict(arch='l4_retina', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[624, 624, 624]))
