_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py'
]
# The published 12 epochs. Their configuration was not published: this is PVT v2's recipe, AdamW at 1e-4 with a weight decay of
# 1e-4. The drop path rate is that of ImageNet.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/scalablevit/scalablevit_s_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/scalablevit_s.pth'

model = dict(
    backbone=dict(
        type='ScalableViT', arch='s', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
