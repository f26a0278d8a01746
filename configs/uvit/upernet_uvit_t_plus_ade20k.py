_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# Nobody published UViT on ADE20K: all is ours, Swin's recipe on the maps of ViTDet's pyramid.
# Pretrained on ImageNet: a checkpoint of configs/uvit/uvit_t_imagenet.py, for none was published. From random weights instead:
# --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/uvit_t_imagenet.pth'

model = dict(
    backbone=dict(
        type='UViT',
        arch='t_plus',
        grid=(64, 64),  # that of 512 x 512 pixels
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(type='SimpleFeaturePyramid', in_channels=[222], stride=8, out_channels=256, num_outs=4),
    decode_head=dict(in_channels=[256, 256, 256, 256]),
    auxiliary_head=dict(in_channels=256))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(pos_embed=dict(decay_mult=0.))))
