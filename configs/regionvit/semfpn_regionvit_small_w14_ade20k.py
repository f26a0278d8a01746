_base_ = ['../_base_/models/semfpn.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/80k.py']
# A comparison of another paper (arXiv 2309.11523) has 45.3 mIoU of this, but no configuration was published: this is PVT's
# recipe, AdamW at 1e-4 with a weight decay of 1e-4. The drop path rate is that of the published detectors.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/regionvit/regionvit_small_imagenet.py; the norms of
# the maps start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/regionvit_small.pth'

model = dict(
    backbone=dict(
        type='RegionViT', arch='small_w14', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
