_base_ = './shunted_t_imagenet.py'
model = dict(backbone=dict(arch='s', drop_path_rate=0.2))
