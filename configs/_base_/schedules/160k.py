# 160k iterations at 16 images a step (8 GPUs x 2), AdamW, as SimViT's published ADE20K configurations. Published without
# batch size: that of MMSegmentation.
_base_ = '../segmentation_runtime.py'  # whose hooks and logs are to count iterations
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=16000))

param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0., by_epoch=False, begin=0, end=160000)]
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4))
auto_scale_lr = dict(enable=False, base_batch_size=16)
