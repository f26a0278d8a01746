_base_ = ['../_base_/models/semfpn.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/80k.py']
# This config is ours: the authors published neither segmentors nor code of them. They wrote that they follow PVT, so these are
# PVT's 80k iterations at 16 images a step: AdamW at 1e-4, weight decay 1e-4. Drop path is that of ImageNet here.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/hatnet/hatnet_tiny_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/hatnet_tiny.pth'

model = dict(
    backbone=dict(type='HATNet', arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[48, 96, 240, 384]))
