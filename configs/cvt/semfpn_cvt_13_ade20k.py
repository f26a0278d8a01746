_base_ = ['../_base_/models/semfpn.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/80k.py']
# CvT was published as a classifier alone. This is PVT's recipe, with norms of the maps, and a convolution of stride 2 for the
# fourth level.
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
    neck=dict(in_channels=[64, 192, 384], add_extra_convs='on_input'))
