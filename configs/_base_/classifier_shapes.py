# A classifier of generated images, from random weights: minutes on two CPU cores. A child adds a small backbone, with the last
# map alone in out_indices, and in_channels of the head.
_base_ = [
    './models/classifier.py', './datasets/shapes_classification.py', './schedules/adamw_cosine.py',
    './classification_runtime.py'
]
model = dict(
    data_preprocessor=dict(num_classes=6, mean=[127.5, 127.5, 127.5], std=[64., 64., 64.]),
    head=dict(num_classes=6, loss=dict(_delete_=True, type='CrossEntropyLoss')),
    train_cfg=None)
train_cfg = dict(max_epochs=12)
auto_scale_lr = dict(base_batch_size=32)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=25))
