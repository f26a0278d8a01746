_base_ = './maskrcnn_msgtransformer_t_coco_3x.py'
pretrained = 'checkpoints/msgtransformer_base.pth'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
