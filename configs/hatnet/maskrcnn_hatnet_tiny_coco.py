_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py'
]
# This config is ours: the authors published neither detectors nor code of them. They wrote that they follow PVT, so these are
# PVT's 12 epochs at 16 images a step: AdamW at 1e-4, weight decay 1e-4, 800 x 1333 pixels. Drop path is that of ImageNet here.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/hatnet/hatnet_tiny_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/hatnet_tiny.pth'

# The norms average over the whole map, padding too: images are padded to the largest of a batch and no further.
model = dict(
    data_preprocessor=dict(pad_size_divisor=1),
    backbone=dict(type='HATNet', arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[48, 96, 240, 384]))
