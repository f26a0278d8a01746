_base_ = './cmt_s_imagenet.py'
# As published: 2048 images a step (8 GPUs x 256) of 192 x 192 pixels, 400 epochs and ten more.
model = dict(backbone=dict(arch='xs', drop_path_rate=0.08), head=dict(in_channels=416))
train_pipeline = [*_base_.train_pipeline]
train_pipeline[1] = dict(train_pipeline[1], scale=192)
test_pipeline = [
    _base_.test_pipeline[0],
    dict(_base_.test_pipeline[1], scale=219),  # the ratio to the crop is that of 224
    dict(_base_.test_pipeline[2], crop_size=192), _base_.test_pipeline[3]
]
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=410)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 2.8e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=2e-5, by_epoch=True, begin=20, end=400, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=2.8e-3, weight_decay=0.04))
auto_scale_lr = dict(base_batch_size=2048)
# The statistics of batch norms are averaged, too.
custom_hooks = [dict(type='EMAHook', momentum=2e-4, priority='ABOVE_NORMAL', update_buffers=True)]
