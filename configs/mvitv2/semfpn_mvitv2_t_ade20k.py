_base_ = [
    '../_base_/models/semfpn.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/80k.py', '../_base_/backbones.py'
]
# This config is ours: PVT's 80k iterations, AdamW at 1e-4 with a weight decay of 1e-4, and the drop path rates of MMPreTrain's
# configs. What maskrcnn_mvitv2_t_coco_3x.py says of the backbone holds here.
model = dict(
    backbone=dict(**_base_.backbones.MViTv2.t.settings, drop_path_rate=0.1),
    neck=dict(in_channels=_base_.backbones.MViTv2.t.channels))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(rel_pos=dict(decay_mult=0.))))
