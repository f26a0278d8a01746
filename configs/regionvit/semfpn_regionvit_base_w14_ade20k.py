_base_ = './semfpn_regionvit_small_w14_ade20k.py'
pretrained = 'checkpoints/regionvit_base.pth'

model = dict(
    backbone=dict(arch='base_w14', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
