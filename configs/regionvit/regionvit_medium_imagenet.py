_base_ = './regionvit_small_imagenet.py'
model = dict(backbone=dict(arch='medium'))
