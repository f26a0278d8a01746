_base_ = './cvt_13_imagenet.py'
# Published with 1024 images a step (8 GPUs x 128), weight decay 0.1 and repeated augmentation.
model = dict(backbone=dict(arch='21'))
train_dataloader = dict(batch_size=128, sampler=dict(type='RepeatAugSampler'))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.1))
auto_scale_lr = dict(base_batch_size=1024)
