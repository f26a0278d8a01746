_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# The published recipe, with AMP (--amp), at 1024 images a step (8 GPUs x 128), each at three resolutions with augmentations of
# their own; the larger teaches the next. It also keeps averaged weights. The classifier reads the class token, as published.
# Where memory is short, model.with_cp=True computes one resolution at a time.
custom_imports = dict(imports=['mmsimvit', 'mmsimvit.classifiers'])
sizes = (224, 160, 128)
model = dict(
    type='MultiResolutionClassifier',
    data_preprocessor=dict(type='MultiResolutionPreprocessor', sizes=sizes),
    backbone=dict(type='ResFormer', arch='tiny', out_type='cls_token', drop_path_rate=0.1),
    neck=None,
    head=dict(in_channels=192))
load, crop, *augment, pack = _base_.train_pipeline
train_pipeline = [
    load,
    dict(
        type='MultiView',
        num_views=[1, 1, 1],
        transforms=[[{**crop, 'scale': size}, *augment] for size in sizes]),
    pack
]
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'), dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'cls_token': dict(decay_mult=0.),
            'pos_embed': dict(decay_mult=0.),
            'attn.local': dict(decay_mult=0.)
        }))
custom_hooks = [dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL')]
