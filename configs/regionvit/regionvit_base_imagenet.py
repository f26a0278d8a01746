_base_ = './regionvit_small_imagenet.py'
model = dict(backbone=dict(arch='base'), head=dict(in_channels=1024))
