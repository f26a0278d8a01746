_base_ = './dwnet_t_imagenet.py'
model = dict(backbone=dict(arch='idynamic_b', drop_path_rate=0.5), head=dict(in_channels=1024))
