_base_ = './semfpn_p2t_base_ade20k.py'
pretrained = 'checkpoints/p2t_large.pth'

model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 320, 640]))
