_base_ = './gpvit_l1_imagenet.py'
model = dict(backbone=dict(arch='l4', drop_path_rate=0.3), neck=dict(in_channels=624), head=dict(in_channels=624))
