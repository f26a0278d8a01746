_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py', '../_base_/backbones.py'
]
# The paper's 12 epochs: AdamW at 1e-4 with a weight decay of 1e-4. The drop path rate is that of MMDetection's RetinaNet, whose
# b4 and b5 learn at 7e-5 for 8 images a step; here all have 1e-4 for 16.
model = dict(
    backbone=dict(**_base_.backbones.PVTv2.b0.settings, drop_path_rate=0.1),
    neck=dict(in_channels=_base_.backbones.PVTv2.b0.channels))
