_base_ = './p2t_base_imagenet.py'
model = dict(backbone=dict(arch='large'), head=dict(in_channels=640))
