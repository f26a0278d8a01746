_base_ = './maskrcnn_shunted_t_coco.py'
pretrained = 'checkpoints/shunted_s.pth'
model = dict(backbone=dict(arch='s', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)))
