_base_ = ['../_base_/models/segformer.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# The published recipe: maps of stride 8 of all four stages, AdamW at 1.2e-4. What has no weight decay is that of the published
# detectors and classifiers.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/gpvit/gpvit_l1_imagenet.py; the norms of the first
# three maps start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/gpvit_l1.pth'

model = dict(
    backbone=dict(type='GPViT', arch='l1', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_channels=[216, 216, 216, 216]))
# Each process has two images, too few for batch norms: the backbone's are synchronised, as are the heads'.
sync_bn = 'torch'
optim_wrapper = dict(
    optimizer=dict(lr=1.2e-4),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(pos_embed=dict(decay_mult=0.), group_token=dict(decay_mult=0.))))
