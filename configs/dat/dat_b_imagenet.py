_base_ = './dat_t_imagenet.py'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    head=dict(in_channels=1024))
param_scheduler = [  # with a longer warm-up
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=50, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=50, end=300, convert_to_iter_based=True)
]
