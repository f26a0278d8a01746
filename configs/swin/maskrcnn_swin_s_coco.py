_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py', '../_base_/backbones.py'
]
# MMDetection's recipe of Swin-T for 12 epochs: AdamW at 1e-4, weight decay 0.05, none on norms and position biases. Ours is the
# size, and the base's warm-up of 500 iterations instead of 1000.
model = dict(
    backbone=dict(**_base_.backbones.Swin.s.settings, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.backbones.Swin.s.channels))
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.), relative_position_bias_table=dict(decay_mult=0.))))
