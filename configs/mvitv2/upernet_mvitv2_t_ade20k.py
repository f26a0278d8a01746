_base_ = [
    '../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py',
    '../_base_/backbones.py'
]
# This config is ours: Swin's recipe, and the drop path rates of MMPreTrain's configs. What maskrcnn_mvitv2_t_coco_3x.py says of
# the backbone holds here.
model = dict(
    backbone=dict(**_base_.backbones.MViTv2.t.settings, drop_path_rate=0.1),
    decode_head=dict(in_channels=_base_.backbones.MViTv2.t.channels),
    auxiliary_head=dict(in_channels=_base_.backbones.MViTv2.t.channels[2]))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(rel_pos=dict(decay_mult=0.))))
