_base_ = [
    './_base_/models/classifier.py', './_base_/datasets/imagenet.py',
    './_base_/schedules/imagenet_300e.py', './_base_/classification_runtime.py'
]
# Pretrained weights to start from, such as the published ones, converted by tools/convert_checkpoint.py: here none.
pretrained = None

model = dict(
    backbone=dict(
        type='SimViT',
        arch='tiny',
        out_indices=(3, ),
        init_cfg=dict(type='Pretrained', checkpoint=pretrained) if pretrained else None),
    head=dict(in_channels=512))
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
