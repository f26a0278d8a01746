_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py', '../_base_/backbones.py'
]
# The published recipe: 30 epochs at 1024 images a step (8 GPUs x 128), from DeiT's weights, which also are the teacher. The
# class token and the positions stay as they are. The predictors learn at the whole rate, all else at a hundredth of it, and not
# at all in the first five epochs. Averaged weights are kept.
# Of images, 70 % of the patches are kept at the first predictor; at test time also another part, such as a half:
# --cfg-options model.backbone.keep_ratio=0.5
custom_imports = dict(imports=['mmsimvit', 'mmsimvit.classifiers'])
model = dict(
    type='DynamicClassifier',
    teacher=_base_.backbones.DeiT.s.settings.init_cfg.checkpoint,
    ratio_weight=2.0,
    backbone=dict(type='DynamicViT', arch='deit_s', out_type='raw', keep_ratio=0.7),
    neck=None,
    head=dict(type='TokenClsHead', in_channels=384))
train_cfg = dict(max_epochs=30)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, by_epoch=True, begin=5, end=30, convert_to_iter_based=True)
]
optim_wrapper = dict(
    constructor='NewPartsOptimWrapperConstructor',
    paramwise_cfg=dict(
        new_parts=['predictors'],
        pretrained_lr_mult=0.01,
        custom_keys=dict(cls_token=dict(lr_mult=0.), pos_embed=dict(lr_mult=0.))))
custom_hooks = [
    dict(type='HoldPretrainedHook', epochs=5),
    dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')
]
