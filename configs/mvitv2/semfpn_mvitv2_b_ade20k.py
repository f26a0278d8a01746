_base_ = './semfpn_mvitv2_t_ade20k.py'
model = dict(backbone=dict(**_base_.backbones.MViTv2.b.settings, drop_path_rate=0.3))
