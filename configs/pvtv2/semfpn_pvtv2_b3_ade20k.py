_base_ = './semfpn_pvtv2_b1_ade20k.py'
model = dict(backbone=_base_.backbones.PVTv2.b3.settings)
