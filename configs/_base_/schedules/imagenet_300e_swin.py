# 300 epochs of ImageNet-1k at 1024 images a step (8 GPUs x 128), AdamW, as published for Swin and by the papers that took its
# recipe over: 20 epochs of warm-up from 5e-7, cosine to 5e-6, no weight decay for biases, norms and relative position biases.
_base_ = './imagenet_300e.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=5e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=5e-6, by_epoch=True, begin=20, end=300, convert_to_iter_based=True)
]
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(position_bias=dict(decay_mult=0.))),
    clip_grad=dict(max_norm=5.0))
