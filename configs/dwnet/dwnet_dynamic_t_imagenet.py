_base_ = './dwnet_t_imagenet.py'
model = dict(backbone=dict(arch='dynamic_t'))
