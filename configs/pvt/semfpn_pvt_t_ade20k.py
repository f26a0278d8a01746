_base_ = [
    '../_base_/models/semfpn.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/80k.py', '../_base_/backbones.py'
]
# The paper's 80k iterations: AdamW at 1e-4 with a weight decay of 1e-4, 16 images a step. The drop path rate is that
# of MMDetection's RetinaNet.
model = dict(
    backbone=dict(**_base_.backbones.PVT.t.settings, drop_path_rate=0.1),
    neck=dict(in_channels=_base_.backbones.PVT.t.channels))
