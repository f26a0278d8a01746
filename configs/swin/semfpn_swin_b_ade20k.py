_base_ = './semfpn_swin_t_ade20k.py'
model = dict(
    backbone=dict(**_base_.backbones.Swin.b.settings, drop_path_rate=0.3),
    neck=dict(in_channels=_base_.backbones.Swin.b.channels))
