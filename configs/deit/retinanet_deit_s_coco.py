_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/coco_detection.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py', '../_base_/backbones.py'
]
# This config is ours: PVT's recipe for 12 epochs on the maps of ViTDet's pyramid. What maskrcnn_deit_s_coco_3x.py says of the
# backbone holds here.
model = dict(
    backbone=dict(**_base_.backbones.DeiT.s.settings, drop_path_rate=0.1),
    neck=dict(
        _delete_=True,
        type='SimpleFeaturePyramid',
        in_channels=_base_.backbones.DeiT.s.channels,
        stride=16,
        out_channels=256,
        num_outs=5,
        start_level=1))
