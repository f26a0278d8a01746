_base_ = './upernet_dwnet_t_ade20k.py'
pretrained = 'checkpoints/dwnet_b.pth'

model = dict(
    backbone=dict(arch='b', init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
