_base_ = './retinanet_simvit_t_coco.py'
pretrained = 'checkpoints/simvit_large.pth'  # of configs/simvit_l_imagenet.py: none were published

model = dict(backbone=dict(arch='large', init_cfg=dict(checkpoint=pretrained)))
