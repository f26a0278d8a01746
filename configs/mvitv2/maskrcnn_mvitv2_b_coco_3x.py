_base_ = './maskrcnn_mvitv2_t_coco_3x.py'
model = dict(backbone=dict(**_base_.backbones.MViTv2.b.settings, drop_path_rate=0.3))
