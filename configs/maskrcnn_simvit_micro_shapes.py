_base_ = [
    './_base_/models/maskrcnn_simvit_micro_small_heads.py', './_base_/datasets/shapes_instance.py',
    './_base_/default_runtime.py'
]
# From random weights, minutes on two CPU cores.
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[64., 64., 64.]),
    roi_head=dict(bbox_head=dict(num_classes=6), mask_head=dict(num_classes=6)))

max_epochs = 6
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.),
    clip_grad=dict(max_norm=5.))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs,
         convert_to_iter_based=True)
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=25))
