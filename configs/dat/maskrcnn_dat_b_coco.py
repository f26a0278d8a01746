_base_ = './maskrcnn_dat_t_coco.py'
pretrained = 'checkpoints/dat_base.pth'

model = dict(
    backbone=dict(arch='base_det', drop_path_rate=0.5, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
