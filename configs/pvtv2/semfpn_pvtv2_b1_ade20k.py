_base_ = './semfpn_pvtv2_b0_ade20k.py'
model = dict(
    backbone=_base_.backbones.PVTv2.b1.settings,
    neck=dict(in_channels=_base_.backbones.PVTv2.b1.channels))
