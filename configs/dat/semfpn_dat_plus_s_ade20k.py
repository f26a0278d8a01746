_base_ = './semfpn_dat_plus_t_ade20k.py'
pretrained = 'checkpoints/dat_plus_small.pth'

model = dict(
    backbone=dict(arch='plus_small', drop_path_rate=0.4, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
