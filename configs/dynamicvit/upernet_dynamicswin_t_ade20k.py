_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# The abstract speaks of dense prediction, but neither code nor configurations nor numbers that could be verified were
# published. This is Swin's recipe, and the published loss that keeps the ratio.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or weights of Swin-T itself, whose
# predictors and fast paths start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/dynamicswin_tiny.pth'

model = dict(
    backbone=dict(type='DynamicSwin', arch='tiny', drop_path_rate=0.3, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
custom_hooks = [dict(type='RatioLossHook')]
