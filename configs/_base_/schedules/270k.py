# As 90k.py, three times as long: 36.8 epochs of COCO.
_base_ = './90k.py'
train_cfg = dict(max_iters=270000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=270000, milestones=[210000, 250000], gamma=0.1)
]
