_base_ = './semfpn_shunted_t_ade20k.py'
pretrained = 'checkpoints/shunted_s.pth'
model = dict(backbone=dict(arch='s', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)))
