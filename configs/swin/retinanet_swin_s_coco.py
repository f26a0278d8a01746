_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/coco_detection.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py', '../_base_/backbones.py'
]
# This config is ours: the recipe is that of Swin's Mask R-CNN for 12 epochs. MMDetection's RetinaNet with Swin-T has
# SGD at 0.01. The first map is not read, and so has no norm.
model = dict(
    backbone=dict(**_base_.backbones.Swin.s.settings, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=_base_.backbones.Swin.s.channels[1:], start_level=0))
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.), relative_position_bias_table=dict(decay_mult=0.))))
