_base_ = ['../_base_/models/semfpn.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/80k.py']
# The published 80k iterations: AdamW at 1e-4, weight decay 1e-4, down to 1e-6. Images are tested at multiples of 32.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/p2t/p2t_tiny_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/p2t_tiny.pth'

model = dict(
    backbone=dict(type='P2T', arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[48, 96, 240, 384]))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-6, by_epoch=False, begin=0, end=80000)]
test_pipeline = [*_base_.test_pipeline[:2], dict(type='ResizeToMultiple', size_divisor=32), *_base_.test_pipeline[2:]]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
