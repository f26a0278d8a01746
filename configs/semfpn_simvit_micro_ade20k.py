_base_ = './semfpn_simvit_t_ade20k.py'
pretrained = 'checkpoints/simvit_micro.pth'

model = dict(
    backbone=dict(arch='micro', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[32, 64, 160, 256]))
