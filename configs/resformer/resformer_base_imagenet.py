_base_ = './resformer_tiny_imagenet.py'
# Published with 200 epochs, 8e-4 for 512 images, 20 epochs of warm-up and clipped gradients.
model = dict(backbone=dict(arch='base', drop_path_rate=0.2), head=dict(in_channels=768))
train_cfg = dict(max_epochs=200)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=200, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=1.6e-3), clip_grad=dict(max_norm=5.0))
