_base_ = './cascadercnn_uvit_s_coco_896.py'
model = dict(backbone=dict(arch='s_plus'))
