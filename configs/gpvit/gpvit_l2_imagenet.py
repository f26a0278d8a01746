_base_ = './gpvit_l1_imagenet.py'
model = dict(backbone=dict(arch='l2'), neck=dict(in_channels=348), head=dict(in_channels=348))
