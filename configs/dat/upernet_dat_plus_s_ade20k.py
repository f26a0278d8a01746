_base_ = './upernet_dat_plus_t_ade20k.py'
pretrained = 'checkpoints/dat_plus_small.pth'

model = dict(
    backbone=dict(arch='plus_small', drop_path_rate=0.5, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
