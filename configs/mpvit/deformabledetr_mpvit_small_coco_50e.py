_base_ = [
    '../_base_/models/deformabledetr.py', '../_base_/datasets/coco_detection_ms_crop.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py'
]
# The published 50 epochs. Their configuration is Deformable DETR's, as in MMDetection: 32 images a step (16 GPUs x 2). The drop
# path rate is that of MPViT's other detectors.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/mpvit/mpvit_small_imagenet.py. From random weights
# instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/mpvit_small.pth'

model = dict(
    backbone=dict(
        type='MPViT',
        arch='small',
        out_indices=(1, 2, 3),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[216, 288, 288]))
# Each process has two images, too few for batch norms: the backbone's are synchronised, and trained.
sync_bn = 'torch'

train_cfg = dict(max_epochs=50)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=50, milestones=[40], gamma=0.1)]
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1), sampling_offsets=dict(lr_mult=0.1), reference_points=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=0.1))
auto_scale_lr = dict(base_batch_size=32)
