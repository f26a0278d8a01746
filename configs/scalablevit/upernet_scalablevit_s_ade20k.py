_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# The published 160k iterations. Their configuration was not published: this is Swin's recipe. The drop path rate is that of
# ImageNet.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/scalablevit/scalablevit_s_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/scalablevit_s.pth'

model = dict(
    backbone=dict(
        type='ScalableViT', arch='s', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
