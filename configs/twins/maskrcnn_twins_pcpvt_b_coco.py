_base_ = './maskrcnn_twins_pcpvt_s_coco.py'
model = dict(backbone=_base_.backbones.Twins.pcpvt_b.settings)
