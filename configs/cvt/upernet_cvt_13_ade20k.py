_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# CvT was published as a classifier alone. This is Swin's recipe, with norms of the maps; UPerNet pools over the third map, of
# stride 16, where it has a fourth otherwise.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/cvt/cvt_13_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/cvt_13.pth'

model = dict(
    backbone=dict(
        type='CvT',
        arch='13',
        map_norms=(0, 1, 2),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_index=[0, 1, 2], in_channels=[64, 192, 384]),
    auxiliary_head=dict(in_channels=384))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(cls_token=dict(decay_mult=0.))))
