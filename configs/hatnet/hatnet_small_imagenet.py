_base_ = './hatnet_tiny_imagenet.py'
model = dict(backbone=dict(arch='small'), head=dict(in_channels=512))
