_base_ = './gcvit_t_imagenet.py'
model = dict(backbone=dict(arch=dict(depths=(3, 4, 29, 5)), drop_path_rate=0.25))
