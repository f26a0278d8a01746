_base_ = './upernet_dat_t_ade20k.py'
pretrained = 'checkpoints/dat_base.pth'

model = dict(
    backbone=dict(arch='base_det', drop_path_rate=0.5, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
