_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# As published: 2048 images a step (8 GPUs x 256), averaged weights, with AMP (--amp).
model = dict(
    backbone=dict(type='CSWin', arch='tiny', out_indices=(3, ), drop_path_rate=0.2),
    head=dict(in_channels=512))
train_dataloader = dict(batch_size=256)
param_scheduler = [
    dict(type='LinearLR', start_factor=5e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=2e-3))
custom_hooks = [dict(type='EMAHook', momentum=1.6e-4, priority='ABOVE_NORMAL')]
auto_scale_lr = dict(base_batch_size=2048)
