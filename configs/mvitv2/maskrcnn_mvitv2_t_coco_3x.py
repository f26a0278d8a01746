_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance_ms_crop.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py', '../_base_/backbones.py'
]
# The paper's 36 epochs. The rest is ours: Swin's recipe of that length, and the drop path rates of MMPreTrain's configs.
# MMPreTrain's MViT pools keys and values, and has none of the windows that the paper's detectors have beside that: the first
# stage's attention takes much memory. Its positions stay those of 224 x 224 pixels, and are resized to each image: with another
# img_size, the weights would not fit. A returned map's norm is what the next stage reads; the weights have none of them.
# Large is left out: it widens before a stage ends, so that these norms would change what its first block adds to.
model = dict(
    backbone=dict(**_base_.backbones.MViTv2.t.settings, drop_path_rate=0.1),
    neck=dict(in_channels=_base_.backbones.MViTv2.t.channels))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(rel_pos=dict(decay_mult=0.))))
