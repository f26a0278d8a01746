_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# As published: with the last map's norm, a head with a hidden layer, the 300 epochs and ten more at the lowest rate.
# Published in mixed precision (--amp). The position generators have no weight decay. The published colour jitter has no effect
# beside RandAugment.
model = dict(
    backbone=dict(type='ScalableViT', arch='s', final_norm=True, out_indices=(3, ), drop_path_rate=0.2),
    head=dict(
        type='StackedLinearClsHead',
        in_channels=512,
        mid_channels=[4096],
        norm_cfg=dict(type='LN', eps=1e-6),
        act_cfg=dict(type='GELU')))
train_cfg = dict(max_epochs=310)
optim_wrapper = dict(
    paramwise_cfg=dict(flat_decay_mult=0., custom_keys=dict(peg=dict(decay_mult=0.))), clip_grad=dict(max_norm=5.0))
