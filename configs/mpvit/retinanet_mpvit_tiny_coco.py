_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/coco_detection.py', '../_base_/schedules/90k.py'
]
# The published 90k iterations. The drop path rates are those that were published for Mask R-CNN with the long schedule.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/mpvit/mpvit_tiny_imagenet.py. From random weights
# instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/mpvit_tiny.pth'

model = dict(
    backbone=dict(type='MPViT', arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[96, 176, 216, 216]))
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
# Each process has two images, too few for batch norms: the backbone's are synchronised, and trained.
sync_bn = 'torch'
