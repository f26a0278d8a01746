_base_ = './uvit_t_imagenet.py'
model = dict(backbone=dict(arch='s'), head=dict(in_channels=288))
