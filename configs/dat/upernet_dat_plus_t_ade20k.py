_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# As published: 160k iterations, AdamW at 6e-5, weight decay 0.01, 1500 iterations of warm-up, linear fall.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/dat/dat_plus_t_imagenet.py; the norms
# of the maps start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/dat_plus_tiny.pth'

model = dict(
    backbone=dict(type='DAT', arch='plus_tiny', drop_path_rate=0.3, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
