_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# The published recipe: 2048 images a step (16 GPUs x 128), 15 epochs of warm-up, cosine to 1 %, clipped gradients, and a
# learned query that attends to the last map instead of its mean.
model = dict(
    backbone=dict(type='GPViT', arch='l1', out_indices=(3, ), drop_path_rate=0.2),
    neck=dict(_delete_=True, type='QueryPooling', in_channels=216, num_heads=6),
    head=dict(in_channels=216))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=15, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=2e-5, by_epoch=True, begin=15, end=300, convert_to_iter_based=True)
]
optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(
        custom_keys={
            'pos_embed': dict(decay_mult=0.),
            'group_token': dict(decay_mult=0.),
            'neck.query': dict(decay_mult=0.)
        }),
    clip_grad=dict(max_norm=1.0))
auto_scale_lr = dict(base_batch_size=2048)
