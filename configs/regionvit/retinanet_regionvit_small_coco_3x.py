_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/coco_detection_ms_crop.py', '../_base_/schedules/270k.py'
]
# As published: 270k iterations, the short side between 480 and 896 pixels, with crops of every second image. The long side is
# not stated: that of 1x, with which images are tested. For the rest see retinanet_regionvit_small_coco.py.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/regionvit/regionvit_small_imagenet.py; the norms of
# the maps start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/regionvit_small.pth'

model = dict(
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395]),
    backbone=dict(type='RegionViT', arch='small', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
scales = [(1120, short) for short in range(480, 897, 32)]
resize = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(
        type='RandomChoice',
        transforms=[[resize],
                    [
                        dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                        dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                        resize
                    ]]),
    dict(type='PackDetInputs')
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=(1120, 672), keep_ratio=True),
    *_base_.test_pipeline[2:]
]
train_dataloader = dict(sampler=dict(type='InfiniteSampler'), dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
optim_wrapper = dict(
    clip_grad=None,
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.), position_bias=dict(decay_mult=0.))))
