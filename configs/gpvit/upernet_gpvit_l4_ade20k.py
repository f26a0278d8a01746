_base_ = './upernet_gpvit_l1_ade20k.py'
pretrained = 'checkpoints/gpvit_l4.pth'

model = dict(
    backbone=dict(arch='l4', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[624, 624, 624, 624]),
    auxiliary_head=dict(in_channels=624))
