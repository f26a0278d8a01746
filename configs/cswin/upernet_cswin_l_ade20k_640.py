_base_ = './upernet_cswin_b_ade20k_640.py'
pretrained = 'checkpoints/cswin_large_22k.pth'

model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[144, 288, 576, 576]),
    auxiliary_head=dict(in_channels=576))
