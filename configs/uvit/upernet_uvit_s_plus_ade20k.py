_base_ = './upernet_uvit_t_plus_ade20k.py'
pretrained = 'checkpoints/uvit_s_imagenet.pth'

model = dict(
    backbone=dict(arch='s_plus', drop_path_rate=0.1, init_cfg=dict(checkpoint=pretrained)), neck=dict(in_channels=[288]))
