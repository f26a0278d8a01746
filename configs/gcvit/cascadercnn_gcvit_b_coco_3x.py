_base_ = './cascadercnn_gcvit_t_coco_3x.py'
pretrained = 'checkpoints/gcvit_base.pth'

model = dict(  # published without a word on the drop path rate: that of ImageNet
    backbone=dict(arch='base', drop_path_rate=0.5, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
