_base_ = './maskrcnn_simvit_t_coco.py'
pretrained = 'checkpoints/simvit_small.pth'

model = dict(backbone=dict(arch='small', init_cfg=dict(checkpoint=pretrained)))
