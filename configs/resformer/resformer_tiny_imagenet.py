_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# The published recipe, with AMP (--amp), at 1024 images a step (8 GPUs x 128), but with one resolution, 224 x 224 pixels: the
# published training sees each image at 224, 160 and 128, and its results are of that. It also keeps averaged weights (decay
# 0.99996). The classifier reads the class token, as published.
model = dict(
    backbone=dict(type='ResFormer', arch='tiny', out_type='cls_token', drop_path_rate=0.1),
    neck=None,
    head=dict(in_channels=192))
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'cls_token': dict(decay_mult=0.),
            'pos_embed': dict(decay_mult=0.),
            'attn.local': dict(decay_mult=0.)
        }))
