_base_ = './maskrcnn_hatnet_tiny_coco.py'
pretrained = 'checkpoints/hatnet_medium.pth'

model = dict(
    backbone=dict(arch='medium', drop_path_rate=0.3, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 320, 512]))
