_base_ = './gcvit_t_imagenet.py'
model = dict(backbone=dict(arch='tiny2', drop_path_rate=0.25))
