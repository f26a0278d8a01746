_base_ = './gcvit_t_imagenet.py'
model = dict(backbone=dict(arch=dict(depths=(3, 4, 6, 5))))
