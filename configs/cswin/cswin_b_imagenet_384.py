_base_ = './cswin_b_imagenet.py'
# The published fine-tuning at 384 x 384 pixels: 20 epochs, and ten more at the lowest rate, which is not stated: a tenth. The
# number of images a step is not stated either: that of training. Wider stripes have the same weights.
# Those of 224 x 224 pixels: a checkpoint of configs/cswin/cswin_b_imagenet.py, or the published one. The head starts anew. For
# that of the checkpoint too: --cfg-options load_from=FILE, where FILE is such a checkpoint, or the published one, converted by
# tools/convert_checkpoint.py --with-head.
pretrained = 'checkpoints/cswin_base.pth'

model = dict(
    backbone=dict(
        stripe_widths=(1, 2, 12), drop_path_rate=0.7, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.1), dict(type='CutMix', alpha=0.1)]))
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
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
train_cfg = dict(max_epochs=30)
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=5e-7, by_epoch=True, begin=0, end=20, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8), accumulative_counts=4)
custom_hooks = [dict(type='EMAHook', momentum=8e-5, interval=4, priority='ABOVE_NORMAL')]  # once a step of the optimizer
