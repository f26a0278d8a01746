_base_ = './maskrcnn_mvitv2_t_coco_3x.py'
model = dict(backbone=_base_.backbones.MViTv2.s.settings)
