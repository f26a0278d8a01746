_base_ = './upernet_gpvit_l1_ade20k.py'
pretrained = 'checkpoints/gpvit_l2.pth'

model = dict(
    backbone=dict(arch='l2', init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[348, 348, 348, 348]),
    auxiliary_head=dict(in_channels=348))
