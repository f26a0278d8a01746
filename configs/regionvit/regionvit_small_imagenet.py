_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# As published: 2048 images a step (8 GPUs x 256), repeated augmentation. The published classifier averages the regional tokens,
# which are no map of the backbone: here it is the last map of local tokens, after its norm. The other maps have none, as
# published. (The published example on several machines has a warm-up of 50 epochs.)
model = dict(
    backbone=dict(type='RegionViT', arch='small', map_norms=(3, ), out_indices=(3, ), drop_path_rate=0.1),
    head=dict(in_channels=768))
train_dataloader = dict(batch_size=256, sampler=dict(type='RepeatAugSampler'))
param_scheduler = [
    dict(type='LinearLR', start_factor=5e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=2048)
