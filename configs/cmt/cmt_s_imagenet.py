_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# As published: 1024 images a step (8 GPUs x 128), in mixed precision (--amp), 20 epochs of warm-up, and ten more at the lowest
# rate. The published colour jitter has no effect beside RandAugment. The published head has its hidden layer before the mean
# over the map, as a 1 x 1 convolution; here it follows the mean, as the library has it.
model = dict(
    backbone=dict(type='CMT', arch='s', out_indices=(3, ), drop_path_rate=0.1),
    head=dict(
        type='StackedLinearClsHead',
        in_channels=512,
        mid_channels=[1280],
        dropout_rate=0.1,
        norm_cfg=dict(type='BN1d'),
        act_cfg=dict(type='SiLU')))
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
train_cfg = dict(max_epochs=310)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300, convert_to_iter_based=True)
]
# The statistics of batch norms are averaged, too.
custom_hooks = [dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL', update_buffers=True)]
