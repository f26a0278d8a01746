_base_ = './maskrcnn_pvt_t_coco.py'
model = dict(backbone=_base_.backbones.PVT.l.settings)
