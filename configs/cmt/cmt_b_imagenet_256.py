_base_ = './cmt_s_imagenet.py'
# As published: 512 images a step (8 GPUs x 64) of 256 x 256 pixels.
model = dict(backbone=dict(arch='b', drop_path_rate=0.25), head=dict(in_channels=608, dropout_rate=0.3))
train_pipeline = [*_base_.train_pipeline]
train_pipeline[1] = dict(train_pipeline[1], scale=256)
test_pipeline = [
    _base_.test_pipeline[0],
    dict(_base_.test_pipeline[1], scale=292),  # the ratio to the crop is that of 224
    dict(_base_.test_pipeline[2], crop_size=256), _base_.test_pipeline[3]
]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=2e-5, by_epoch=True, begin=20, end=300, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=5e-4))
auto_scale_lr = dict(base_batch_size=512)
