_base_ = './upernet_mpvit_small_ade20k.py'
pretrained = 'checkpoints/mpvit_base.pth'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[224, 368, 480, 480]),
    auxiliary_head=dict(in_channels=480))
