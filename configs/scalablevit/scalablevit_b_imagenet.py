_base_ = './scalablevit_s_imagenet.py'
model = dict(backbone=dict(arch='b', drop_path_rate=0.5), head=dict(in_channels=768))
