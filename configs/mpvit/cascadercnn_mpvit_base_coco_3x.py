_base_ = [
    '../_base_/models/cascadercnn.py', '../_base_/datasets/coco_instance_ms_crop.py', '../_base_/schedules/270k.py'
]
# The published 270k iterations and drop path rate. The box heads are those of this project's other cascades, not Detectron2's.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/mpvit/mpvit_base_imagenet.py. From random weights
# instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/mpvit_base.pth'

model = dict(
    backbone=dict(type='MPViT', arch='base', drop_path_rate=0.5, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[224, 368, 480, 480]))
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
# Each process has two images, too few for batch norms: the backbone's are synchronised, and trained.
sync_bn = 'torch'
