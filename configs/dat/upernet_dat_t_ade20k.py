_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# DAT was published without segmentors. This is Swin's recipe, and its formulas of the published detection code of DAT++ (_det).
# The drop path rate is that of ImageNet.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/dat/dat_t_imagenet.py; the norms
# of the maps start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/dat_tiny.pth'

model = dict(
    backbone=dict(type='DAT', arch='tiny_det', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
