_base_ = './lit_s_imagenet.py'
model = dict(backbone=dict(arch='m', drop_path_rate=0.3))
