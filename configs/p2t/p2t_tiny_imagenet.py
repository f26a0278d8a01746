_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# The published 310 epochs: 20 of warm-up, and the last ten at the lowest rate.
model = dict(
    backbone=dict(type='P2T', arch='tiny', out_indices=(3, ), drop_path_rate=0.1),
    head=dict(in_channels=384))
train_cfg = dict(max_epochs=310)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300, convert_to_iter_based=True)
]
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
