_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# The published 300 epochs and ten more at the lowest rate, with AMP (--amp), at 2048 images a step (8 GPUs x 256). The
# published classifier reads the class token; this one takes the mean of the last map, as every classifier here.
model = dict(
    backbone=dict(type='CvT', arch='13', map_norms=(2, ), out_indices=(2, ), drop_path_rate=0.1),
    head=dict(in_channels=384))
train_dataloader = dict(batch_size=256)
train_cfg = dict(max_epochs=310)
param_scheduler = [
    dict(type='LinearLR', start_factor=5e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(custom_keys=dict(cls_token=dict(decay_mult=0.))))
auto_scale_lr = dict(base_batch_size=2048)
