_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py', '../_base_/backbones.py'
]
# The paper's 12 epochs: AdamW at 1e-4 with a weight decay of 1e-4. The drop path rate is that of MMDetection's RetinaNet.
model = dict(
    backbone=dict(**_base_.backbones.PVT.t.settings, drop_path_rate=0.1),
    neck=dict(in_channels=_base_.backbones.PVT.t.channels))
