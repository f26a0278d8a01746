_base_ = './maskrcnn_shunted_s_coco_3x.py'
pretrained = 'checkpoints/shunted_t.pth'
model = dict(backbone=dict(arch='t', drop_path_rate=0.1, init_cfg=dict(checkpoint=pretrained)))
