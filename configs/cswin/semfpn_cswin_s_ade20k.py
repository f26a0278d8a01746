_base_ = './semfpn_cswin_t_ade20k.py'
pretrained = 'checkpoints/cswin_small.pth'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint=pretrained)))
