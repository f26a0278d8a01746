_base_ = './cascadercnn_dwnet_t_coco_3x.py'
pretrained = 'checkpoints/dwnet_dynamic_b.pth'

model = dict(
    backbone=dict(arch='dynamic_b', drop_path_rate=0.3, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
