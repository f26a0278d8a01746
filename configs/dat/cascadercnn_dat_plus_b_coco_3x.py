_base_ = './cascadercnn_dat_plus_t_coco_3x.py'
pretrained = 'checkpoints/dat_plus_base.pth'

model = dict(
    backbone=dict(arch='plus_base', drop_path_rate=0.7, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
