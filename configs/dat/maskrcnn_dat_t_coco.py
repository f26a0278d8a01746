_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py'
]
# DAT was published without detectors. This is Swin's recipe, and its formulas of the published detection code of DAT++ (_det).
# The drop path rate is that of ImageNet.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/dat/dat_t_imagenet.py; the norms
# of the maps start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/dat_tiny.pth'

model = dict(
    backbone=dict(
        type='DAT',
        arch='tiny_det',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.), position_bias=dict(decay_mult=0.))))
