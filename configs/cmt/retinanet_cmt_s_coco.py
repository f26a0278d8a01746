_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/coco_detection.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py'
]
# This config is ours: the paper has results, 12 epochs long, but neither its code nor its recipe was published. It is PVT's
# recipe (AdamW at 1e-4, weight decay 1e-4), with norms of the maps that the neck reads, and the drop path of ImageNet. Tables
# of positions are resampled from 224 x 224 pixels as the paper says; with resampling='grid' they keep places.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/cmt/cmt_s_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/cmt_s.pth'

model = dict(
    backbone=dict(
        type='CMT',
        arch='s',
        map_norms=(1, 2, 3),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
# Each process has two images, too few for batch norms: they are synchronised.
sync_bn = 'torch'
