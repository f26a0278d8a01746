_base_ = './maskrcnn_pvtv2_b1_coco.py'
model = dict(backbone=_base_.backbones.PVTv2.b2.settings)
