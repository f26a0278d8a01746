_base_ = './semfpn_simvit_t_ade20k.py'
pretrained = 'checkpoints/simvit_medium.pth'  # of configs/simvit_m_imagenet.py: none were published

model = dict(backbone=dict(arch='medium', init_cfg=dict(checkpoint=pretrained)))
