_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance.py', '../_base_/schedules/1x.py',
    '../_base_/detection_runtime.py'
]
# The paper's 12 epochs: AdamW at 1e-4, weight decay 0.05. It does not say what has none: norms, as in Swin's recipe.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/cswin/cswin_t_imagenet.py. From random weights
# instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/cswin_tiny.pth'

model = dict(
    backbone=dict(type='CSWin', arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05), paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.))))
