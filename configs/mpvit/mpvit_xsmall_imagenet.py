_base_ = './mpvit_tiny_imagenet.py'
model = dict(backbone=dict(arch='xsmall', drop_path_rate=0.), head=dict(in_channels=256))
