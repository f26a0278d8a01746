_base_ = './retinanet_mvitv2_t_coco.py'
model = dict(backbone=_base_.backbones.MViTv2.s.settings)
