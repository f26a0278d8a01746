_base_ = './dat_plus_t_imagenet.py'
model = dict(
    backbone=dict(arch='plus_small', drop_path_rate=0.4),
    head=dict(in_channels=768))
