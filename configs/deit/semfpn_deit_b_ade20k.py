_base_ = './semfpn_deit_s_ade20k.py'
model = dict(
    backbone=_base_.backbones.DeiT.b.settings,
    neck=dict(in_channels=_base_.backbones.DeiT.b.channels))
