_base_ = [
    '../_base_/models/semfpn.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/80k.py', '../_base_/backbones.py'
]
# This config is ours: PVT's 80k iterations, AdamW at 1e-4 with a weight decay of 1e-4. Drop path rates are those of detectors.
model = dict(
    backbone=dict(**_base_.backbones.Swin.t.settings, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.backbones.Swin.t.channels))
