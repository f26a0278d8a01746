_base_ = './upernet_gpvit_l1_ade20k.py'
pretrained = 'checkpoints/gpvit_l3.pth'

model = dict(
    backbone=dict(arch='l3', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[432, 432, 432, 432]),
    auxiliary_head=dict(in_channels=432))
