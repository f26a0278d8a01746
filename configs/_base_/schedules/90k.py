# 90k iterations of COCO at 16 images a step (8 GPUs x 2), AdamW, with full weight decay and clipped gradients, as MPViT's
# published detectors, which count iterations as Detectron2 does: 12.3 epochs. A child takes an InfiniteSampler.
_base_ = '../detection_runtime.py'  # whose hooks and logs are to count iterations
train_cfg = dict(type='IterBasedTrainLoop', max_iters=90000, val_interval=7500)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=7500))

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=90000, milestones=[60000, 80000], gamma=0.1)
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0))
auto_scale_lr = dict(enable=False, base_batch_size=16)
