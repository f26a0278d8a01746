_base_ = './semfpn_hatnet_medium_ade20k.py'
pretrained = 'checkpoints/hatnet_large.pth'

model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 320, 640]))
