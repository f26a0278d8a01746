_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/coco_detection_ms_crop.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py'
]
# The published recipe, in float16: --amp, with --cfg-options optim_wrapper.loss_scale.init_scale=512. The adapter gives
# three maps. The steps of the rate, its warm-up and 16 images a step (8 GPUs x 2) are MMDetection's.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/gpvit/gpvit_l1_imagenet.py; the adapter starts anew.
# From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/gpvit_l1.pth'

model = dict(
    backbone=dict(
        type='GPViT', arch='l1_retina', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[216, 216, 216], start_level=0))
# Each process has two images, too few for batch norms: they are synchronised.
sync_bn = 'torch'
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(pos_embed=dict(decay_mult=0.), group_token=dict(decay_mult=0.), level_embed=dict(decay_mult=0.))))
