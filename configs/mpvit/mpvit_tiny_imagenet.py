_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# The published recipe, with repeated augmentation and averaged weights.
model = dict(
    backbone=dict(type='MPViT', arch='tiny', out_indices=(3, ), drop_path_rate=0.),
    head=dict(in_channels=216))
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
# The statistics of batch norms are averaged, too.
custom_hooks = [dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL', update_buffers=True)]
