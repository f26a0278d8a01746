_base_ = './upernet_dwnet_t_ade20k.py'
pretrained = 'checkpoints/dwnet_dynamic_t.pth'

model = dict(backbone=dict(arch='dynamic_t', init_cfg=dict(checkpoint=pretrained)))
