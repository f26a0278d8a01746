_base_ = './semfpn_hatnet_tiny_ade20k.py'
pretrained = 'checkpoints/hatnet_small.pth'

model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 320, 512]))
