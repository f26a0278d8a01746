_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance_ms_crop.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py', '../_base_/backbones.py'
]
# MMDetection's recipe of Swin-T and Swin-S for 36 epochs, at the size of the paper's Cascade Mask R-CNN and with its drop path
# rate. Ours is the base's warm-up of 500 iterations instead of 1000.
model = dict(
    backbone=dict(**_base_.backbones.Swin.b.settings, drop_path_rate=0.3),
    neck=dict(in_channels=_base_.backbones.Swin.b.channels))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.))))
