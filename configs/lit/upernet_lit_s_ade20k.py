_base_ = './upernet_lit_ti_ade20k.py'
pretrained = 'checkpoints/lit_s.pth'

model = dict(
    backbone=dict(arch='s', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
