_base_ = './semfpn_mvitv2_t_ade20k.py'
model = dict(backbone=_base_.backbones.MViTv2.s.settings)
