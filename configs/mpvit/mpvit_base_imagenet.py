_base_ = './mpvit_tiny_imagenet.py'
model = dict(backbone=dict(arch='base', drop_path_rate=0.3), head=dict(in_channels=480))
