_base_ = './upernet_simvit_t_ade20k.py'
pretrained = 'checkpoints/simvit_micro.pth'

model = dict(
    backbone=dict(arch='micro', init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
    auxiliary_head=dict(in_channels=160))
