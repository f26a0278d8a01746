_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# The published 160k iterations. The drop path rate is that of the published code; the paper has 0.2.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/cswin/cswin_t_imagenet.py. From random weights
# instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/cswin_tiny.pth'

model = dict(
    backbone=dict(type='CSWin', arch='tiny', drop_path_rate=0.3, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
