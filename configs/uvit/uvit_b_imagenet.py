_base_ = './uvit_t_imagenet.py'
model = dict(backbone=dict(arch='b'), head=dict(in_channels=384))
