_base_ = './lit_s_imagenet.py'
model = dict(backbone=dict(arch=dict(depths=(2, 2, 18, 2)), drop_path_rate=0.3))
