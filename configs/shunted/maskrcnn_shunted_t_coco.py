_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py'
]
# This config is ours: the authors published neither detectors nor code of them, but wrote that they followed PVT's code. The
# paper has 12 epochs at 16 images a step, AdamW at 1e-4, 800 x 1333 pixels. It says nothing of weight decay, here PVT's, nor of
# drop path, here that of ImageNet.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/shunted/shunted_t_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/shunted_t.pth'

model = dict(
    backbone=dict(type='Shunted', arch='t', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
# Each process has two images, too few for batch norms: the stem's are synchronised.
sync_bn = 'torch'
