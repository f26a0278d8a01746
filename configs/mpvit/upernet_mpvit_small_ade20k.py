_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# The published 160k iterations. Unlike Swin's recipe, it has no parameters without weight decay.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/mpvit/mpvit_small_imagenet.py. From random weights
# instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/mpvit_small.pth'

model = dict(
    backbone=dict(type='MPViT', arch='small', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_channels=[128, 216, 288, 288]),
    auxiliary_head=dict(in_channels=288))
optim_wrapper = dict(paramwise_cfg=None)
# Each process has two images, too few for batch norms: the backbone's are synchronised, and trained, as published.
sync_bn = 'torch'
