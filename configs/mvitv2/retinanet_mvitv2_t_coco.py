_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/coco_detection.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py', '../_base_/backbones.py'
]
# This config is ours: Swin's recipe of Mask R-CNN for 12 epochs, and the drop path rates of MMPreTrain's configs. What
# maskrcnn_mvitv2_t_coco_3x.py says of the backbone holds here.
model = dict(
    backbone=dict(**_base_.backbones.MViTv2.t.settings, drop_path_rate=0.1),
    neck=dict(in_channels=_base_.backbones.MViTv2.t.channels))
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.), rel_pos=dict(decay_mult=0.))))
