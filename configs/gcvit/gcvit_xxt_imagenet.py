_base_ = './gcvit_t_imagenet.py'
model = dict(backbone=dict(arch=dict(depths=(2, 2, 6, 2))))
