_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e_swin.py',
    '../_base_/classification_runtime.py'
]
# As published. The weights that predict offsets learn a hundredth as fast.
model = dict(
    backbone=dict(
        type='LIT',
        arch='s',
        bias_grids=(14, 7),  # those of 224 x 224 pixels
        map_norms=(3, ),
        out_indices=(3, ),
        drop_path_rate=0.2),
    head=dict(in_channels=768))
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'offset.weight': dict(lr_mult=0.01)}))
