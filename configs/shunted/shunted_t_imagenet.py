_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# As published. Gradients are clipped for the base variant alone.
model = dict(
    backbone=dict(type='Shunted', arch='t', out_indices=(3, ), drop_path_rate=0.1),
    head=dict(in_channels=512))
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
