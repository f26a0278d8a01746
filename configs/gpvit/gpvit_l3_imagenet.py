_base_ = './gpvit_l1_imagenet.py'
model = dict(backbone=dict(arch='l3', drop_path_rate=0.3), neck=dict(in_channels=432), head=dict(in_channels=432))
