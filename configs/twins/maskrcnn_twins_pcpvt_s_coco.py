_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py', '../_base_/backbones.py'
]
# PVT's recipe for 12 epochs, which Twins follows: AdamW at 1e-4 with a weight decay of 1e-4. The drop path rate of all sizes is
# that of MMSegmentation's Semantic FPN.
# PCPVT gives its maps as they are, SVT with norms that the next stage reads as well, both as in MMSegmentation.
# SVT's windows do not mask the padding of one side where the other needs none; so it is in MMPreTrain, and stays so.
model = dict(
    backbone=dict(**_base_.backbones.Twins.pcpvt_s.settings, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.backbones.Twins.pcpvt_s.channels))
