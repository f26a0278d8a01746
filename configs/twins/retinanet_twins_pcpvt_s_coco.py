_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/coco_detection.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py', '../_base_/backbones.py'
]
# PVT's recipe for 12 epochs, as in maskrcnn_twins_pcpvt_s_coco.py.
model = dict(
    backbone=dict(**_base_.backbones.Twins.pcpvt_s.settings, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.backbones.Twins.pcpvt_s.channels))
