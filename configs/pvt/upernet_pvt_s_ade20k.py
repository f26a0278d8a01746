_base_ = [
    '../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py',
    '../_base_/backbones.py'
]
# This config is ours: Swin's recipe. The drop path rate is that of MMDetection's RetinaNet.
model = dict(
    backbone=dict(**_base_.backbones.PVT.s.settings, drop_path_rate=0.1),
    decode_head=dict(in_channels=_base_.backbones.PVT.s.channels),
    auxiliary_head=dict(in_channels=_base_.backbones.PVT.s.channels[2]))
