_base_ = './semfpn_simvit_t_ade20k.py'
pretrained = 'checkpoints/simvit_small.pth'

model = dict(backbone=dict(arch='small', init_cfg=dict(checkpoint=pretrained)))
