_base_ = './maskrcnn_resformer_small_coco_3x.py'
pretrained = 'checkpoints/resformer_base.pth'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=pretrained)), neck=dict(in_channels=[768]))
