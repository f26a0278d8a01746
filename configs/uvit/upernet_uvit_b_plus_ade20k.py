_base_ = './upernet_uvit_t_plus_ade20k.py'
pretrained = 'checkpoints/uvit_b_imagenet.pth'

model = dict(
    backbone=dict(arch='b_plus', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)), neck=dict(in_channels=[384]))
