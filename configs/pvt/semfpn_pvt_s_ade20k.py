_base_ = './semfpn_pvt_t_ade20k.py'
model = dict(backbone=_base_.backbones.PVT.s.settings)
