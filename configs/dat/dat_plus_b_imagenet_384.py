_base_ = './dat_plus_b_imagenet.py'
# The published fine-tuning at 384 x 384 pixels: 30 epochs, 2e-6 for 512 images, weight decay 1e-8. What else differs from
# training is not stated: the rate falls to zero without warm-up, and position biases have the grids of these images.
# From a checkpoint of configs/dat/dat_plus_b_imagenet.py, or the published one of 224 x 224 pixels. The head starts anew.
# For that of the checkpoint too: --cfg-options load_from=FILE, which tools/convert_checkpoint.py --with-head makes of it if it
# is published.
pretrained = 'checkpoints/dat_plus_base.pth'

model = dict(
    backbone=dict(
        bias_grids=(96, 48, 24, 12), init_cfg=dict(type='Pretrained', checkpoint=pretrained)))
train_pipeline = [
    _base_.train_pipeline[0],
    dict(type='RandomResizedCrop', scale=384, backend='pillow', interpolation='bicubic'),
    *_base_.train_pipeline[2:]
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='ResizeEdge', scale=384, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    _base_.test_pipeline[3]
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
train_cfg = dict(max_epochs=30)
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0., by_epoch=True, begin=0, end=30, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=4e-6, weight_decay=1e-8))
