_base_ = [
    './_base_/models/classifier_simvit.py', './_base_/datasets/shapes_classification.py',
    './_base_/schedules/adamw_cosine.py', './_base_/classification_runtime.py'
]
# From random weights, minutes on two CPU cores.
model = dict(
    data_preprocessor=dict(num_classes=6, mean=[127.5, 127.5, 127.5], std=[64., 64., 64.]),
    backbone=dict(arch='micro', drop_path_rate=0.),
    head=dict(num_classes=6, in_channels=256, loss=dict(_delete_=True, type='CrossEntropyLoss')),
    train_cfg=None)
train_cfg = dict(max_epochs=12)
auto_scale_lr = dict(base_batch_size=32)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=25))
