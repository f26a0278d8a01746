_base_ = './semfpn_swin_t_ade20k.py'
model = dict(
    backbone=_base_.backbones.Swin.s.settings,
    neck=dict(in_channels=_base_.backbones.Swin.s.channels))
