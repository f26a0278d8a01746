_base_ = [
    './_base_/models/retinanet.py', './_base_/datasets/coco_detection.py',
    './_base_/schedules/1x.py', './_base_/detection_runtime.py'
]
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/simvit_t_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/simvit_tiny.pth'

model = dict(
    backbone=dict(type='SimViT', arch='tiny', init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 320, 512]))
