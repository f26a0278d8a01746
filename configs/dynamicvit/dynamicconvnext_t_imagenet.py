_base_ = './dynamicvit_deit_s_imagenet.py'
# The published recipe for dynamic spatial sparsification: 120 epochs at 4096 images a step (8 GPUs x 128, every fourth of which
# is a step), from the weights of the whole network. Predictors and fast paths learn at the whole rate, all else at a fifth.
# Of the positions of stage 3, 70 % go the slow way behind the first predictor.
model = dict(
    teacher='https://download.openmmlab.com/mmclassification/v0/convnext/convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth',
    ratio_weight=10.0,
    backbone=dict(
        _delete_=True,
        type='DynamicConvNeXt',
        arch='tiny',
        out_indices=(3, ),
        map_norms=(),
        drop_path_rate=0.2,
        keep_ratio=0.7),
    neck=dict(_delete_=True, type='NormedPooling', in_channels=768),
    head=dict(type='LinearClsHead', in_channels=768))
train_cfg = dict(max_epochs=120)
param_scheduler = [
    dict(type='LinearLR', start_factor=2.5e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=2.5e-4, by_epoch=True, begin=20, end=120, convert_to_iter_based=True)
]
optim_wrapper = dict(
    accumulative_counts=4,
    optimizer=dict(lr=4e-3),
    paramwise_cfg=dict(
        _delete_=True,
        new_parts=['predictors', 'fast'],
        pretrained_lr_mult=0.2,
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(gamma=dict(decay_mult=0.))))
auto_scale_lr = dict(base_batch_size=4096)
