_base_ = './semfpn_cswin_t_ade20k.py'
pretrained = 'checkpoints/cswin_base.pth'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
