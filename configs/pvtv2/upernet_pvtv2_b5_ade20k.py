_base_ = './upernet_pvtv2_b2_ade20k.py'
model = dict(backbone=_base_.backbones.PVTv2.b5.settings)
