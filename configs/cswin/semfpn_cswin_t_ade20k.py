_base_ = ['../_base_/models/semfpn.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/80k.py']
# The paper's 80k iterations: AdamW at 1e-4, weight decay 1e-4, 16 images (4 GPUs x 4). The fall of the rate and the drop path
# rate are not stated: PVT's, and those of the paper's Mask R-CNN.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/cswin/cswin_t_imagenet.py. From random weights
# instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/cswin_tiny.pth'

model = dict(
    backbone=dict(type='CSWin', arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
