_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance_ms_crop.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py'
]
# The abstract speaks of dense prediction, but neither code nor configurations nor numbers that could be verified were
# published. This is Swin's recipe, and the published loss that keeps the ratio.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or weights of Swin-T itself, whose
# predictors and fast paths start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/dynamicswin_tiny.pth'

model = dict(
    backbone=dict(type='DynamicSwin', arch='tiny', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(position_bias=dict(decay_mult=0.))))
custom_hooks = [dict(type='RatioLossHook')]
