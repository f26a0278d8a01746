_base_ = './cswin_b_imagenet.py'
# From weights of ImageNet-22K, whose training needs that data. The drop path rate is published; the rest is the published
# fine-tuning of base at 384 x 384 pixels.
pretrained = 'checkpoints/cswin_large_22k.pth'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    head=dict(in_channels=576),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.1), dict(type='CutMix', alpha=0.1)]))
train_cfg = dict(max_epochs=30)
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=5e-7, by_epoch=True, begin=0, end=20, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
