_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/coco_detection.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py'
]
# The published 12 epochs: AdamW at 1e-4, weight decay 1e-4.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/p2t/p2t_tiny_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/p2t_tiny.pth'

model = dict(
    backbone=dict(type='P2T', arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[48, 96, 240, 384]))
