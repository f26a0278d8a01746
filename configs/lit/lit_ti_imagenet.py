_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# As published, but the class token and its norm, which no dense prediction has: here the mean of the last map is classified.
# The weights that predict offsets learn a hundredth as fast.
model = dict(
    backbone=dict(type='LIT', arch='ti', out_indices=(3, ), drop_path_rate=0.1),
    head=dict(in_channels=512))
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'offset.weight': dict(lr_mult=0.01)}))
