_base_ = './simvit_t_imagenet.py'
model = dict(backbone=dict(arch='micro'), head=dict(in_channels=256))
