_base_ = './upernet_dat_plus_t_ade20k.py'
pretrained = 'checkpoints/dat_plus_base.pth'

model = dict(
    backbone=dict(arch='plus_base', drop_path_rate=0.7, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
