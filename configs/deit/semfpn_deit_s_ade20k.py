_base_ = [
    '../_base_/models/semfpn.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/80k.py', '../_base_/backbones.py'
]
# This config is ours: PVT's recipe for 80k iterations on the maps of ViTDet's pyramid. MMSegmentation has UPerNet with DeiT.
model = dict(
    backbone=dict(**_base_.backbones.DeiT.s.settings, drop_path_rate=0.1),
    neck=dict(
        _delete_=True,
        type='SimpleFeaturePyramid',
        in_channels=_base_.backbones.DeiT.s.channels,
        stride=16,
        out_channels=256,
        num_outs=4))
