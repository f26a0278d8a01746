_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance.py', '../_base_/schedules/90k.py'
]
# As published: 90k iterations, AdamW at 1e-4, weight decay 0.05, images of 672 x 1120 pixels, no clipping. Ours, since nothing
# is stated: the warm-up is MPViT's, and norms and position biases have no weight decay, as in Swin's recipe. The published
# code reads images as R, G, B, but its means and deviations are in the order B, G, R; so they are here.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/regionvit/regionvit_small_imagenet.py; the norms of
# the maps start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/regionvit_small.pth'

model = dict(
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395]),
    backbone=dict(type='RegionViT', arch='small', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='Resize', scale=(1120, 672), keep_ratio=True),
    *_base_.train_pipeline[3:]
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
