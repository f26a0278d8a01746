_base_ = ['../_base_/models/semfpn.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/80k.py']
# As published: 40k iterations of 32 images (8 GPUs x 4), AdamW at 2e-4, weight decay 1e-4, a polynomial fall.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/dat/dat_plus_t_imagenet.py; the norms
# of the maps start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/dat_plus_tiny.pth'

model = dict(
    backbone=dict(type='DAT', arch='plus_tiny', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
train_dataloader = dict(batch_size=4)
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0., by_epoch=False, begin=0, end=40000)]
optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=32)
