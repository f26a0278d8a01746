_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/coco_detection_ms_crop.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py'
]
# The published 36 epochs. Their configuration was not published: this is Swin's recipe, with many scales and crops. The drop
# path rate is that of ImageNet.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/scalablevit/scalablevit_s_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/scalablevit_s.pth'

model = dict(
    backbone=dict(
        type='ScalableViT', arch='s', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
