_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# The published 310 epochs, the last ten at the lowest rate. The published rate is for a batch that is not stated; 4096 images
# are assumed here (32 GPUs x 128), and on others --auto-scale-lr is to be given. Published with AMP (--amp), and for small and
# larger with 32 images a GPU.
model = dict(
    backbone=dict(
        type='GCViT',
        arch='tiny',
        window_sizes=(7, 7, 14, 7),  # those of 224 x 224 pixels
        out_indices=(3, ),
        drop_path_rate=0.2),
    head=dict(in_channels=512))
train_cfg = dict(max_epochs=310)
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=5e-6, by_epoch=True, begin=20, end=300, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=5e-3), paramwise_cfg=dict(flat_decay_mult=0.), clip_grad=dict(max_norm=5.0))
custom_hooks = [dict(type='EMAHook', momentum=2e-4, priority='ABOVE_NORMAL')]
auto_scale_lr = dict(base_batch_size=4096)
