_base_ = [
    '../_base_/models/maskrcnn_vitdet.py', '../_base_/datasets/coco_instance_1024.py', '../_base_/schedules/3x_vitdet.py',
    '../_base_/detection_runtime.py', '../_base_/backbones.py'
]
# This config is ours: ViTDet's design and recipe for 36 epochs, as in configs/resformer/maskrcnn_resformer_small_coco_3x.py.
# MMPreTrain's vision transformer has no windows: each block sees all of the 64 x 64 patches. Its positions stay those of
# 224 x 224 pixels, and are resized to each image, as in ViTDet.
model = dict(
    backbone=dict(**_base_.backbones.DeiT.s.settings, drop_path_rate=0.1),
    neck=dict(in_channels=_base_.backbones.DeiT.s.channels))
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(cls_token=dict(decay_mult=0.))))
