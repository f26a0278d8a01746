_base_ = [
    './_base_/models/retinanet_small_heads.py', './_base_/datasets/shapes_detection.py',
    './_base_/schedules/adamw_cosine.py', './_base_/detection_runtime.py'
]
# From random weights, minutes on two CPU cores.
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[64., 64., 64.]),
    backbone=dict(type='SimViT', arch='micro', drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 160, 256]),
    bbox_head=dict(num_classes=6))
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=25))
