_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# The paper's UPerNet with 80k iterations. Published are the results and the number of parameters, which fits this one: the
# heads take the maps of four blocks as they are, all of stride 16, without a neck. The rest is the recipe of MMSegmentation's
# UPerNet with DeiT, whose rates are Swin's.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/resformer/resformer_small_imagenet.py, which sees
# one resolution. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/resformer_small.pth'

model = dict(
    backbone=dict(
        type='ResFormer',
        arch='small',
        out_indices=(2, 5, 8, 11),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_index=3, in_channels=384))
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0., by_epoch=False, begin=1500, end=80000)
]
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'cls_token': dict(decay_mult=0.),
            'pos_embed': dict(decay_mult=0.),
            'attn.local': dict(decay_mult=0.)
        }))
