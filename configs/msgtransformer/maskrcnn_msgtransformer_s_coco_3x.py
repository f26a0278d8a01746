_base_ = './maskrcnn_msgtransformer_t_coco_3x.py'
pretrained = 'checkpoints/msgtransformer_small.pth'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
