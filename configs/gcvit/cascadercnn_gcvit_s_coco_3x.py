_base_ = './cascadercnn_gcvit_t_coco_3x.py'
pretrained = 'checkpoints/gcvit_small.pth'

model = dict(  # published without a word on the drop path rate: that of ImageNet
    backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
