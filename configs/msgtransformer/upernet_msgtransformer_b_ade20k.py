_base_ = './upernet_msgtransformer_t_ade20k.py'
pretrained = 'checkpoints/msgtransformer_base.pth'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
