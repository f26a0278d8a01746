# Mask R-CNN with small heads on generated images, from random weights: minutes on two CPU cores. A child adds a small backbone,
# and in_channels of the neck.
_base_ = [
    './models/maskrcnn_small_heads.py', './datasets/shapes_instance.py', './schedules/adamw_cosine.py', './detection_runtime.py'
]
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[64., 64., 64.]),
    roi_head=dict(bbox_head=dict(num_classes=6), mask_head=dict(num_classes=6)))
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=25))
