_base_ = ['../_base_/models/semfpn.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/80k.py']
# This config is ours: the authors published neither segmentors nor code of them, but wrote that they followed PVT's code. The
# paper has 80k iterations; optimizer and learning rate are PVT's, drop path is that of ImageNet.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/shunted/shunted_t_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/shunted_t.pth'

model = dict(
    backbone=dict(type='Shunted', arch='t', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
# Each process has two images, too few for batch norms: the stem's are synchronised.
sync_bn = 'torch'
