_base_ = './hatnet_medium_imagenet.py'
model = dict(backbone=dict(arch='large'), head=dict(in_channels=640))
