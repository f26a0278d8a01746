_base_ = './maskrcnn_shunted_t_coco.py'
pretrained = 'checkpoints/shunted_b.pth'
model = dict(backbone=dict(arch='b', drop_path_rate=0.3, init_cfg=dict(checkpoint=pretrained)))
