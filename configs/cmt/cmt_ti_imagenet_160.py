_base_ = './cmt_s_imagenet.py'
# As published: 2048 images a step (8 GPUs x 256) of 160 x 160 pixels, 800 epochs and ten more, no average of the weights.
model = dict(backbone=dict(arch='ti'), head=dict(in_channels=368))
train_pipeline = [*_base_.train_pipeline]
train_pipeline[1] = dict(train_pipeline[1], scale=160)
test_pipeline = [
    _base_.test_pipeline[0],
    dict(_base_.test_pipeline[1], scale=182),  # the ratio to the crop is that of 224
    dict(_base_.test_pipeline[2], crop_size=160), _base_.test_pipeline[3]
]
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=810)
param_scheduler = [
    dict(type='LinearLR', start_factor=3.125e-5, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=800, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=3.2e-3))
auto_scale_lr = dict(base_batch_size=2048)
custom_hooks = []
