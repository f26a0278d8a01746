_base_ = [
    './_base_/models/gfl.py', './_base_/datasets/coco_detection_ms_crop.py',
    './_base_/schedules/3x.py', './_base_/detection_runtime.py'
]
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/simvit_s_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/simvit_small.pth'

model = dict(
    backbone=dict(type='SimViT', arch='small', init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 320, 512]))
