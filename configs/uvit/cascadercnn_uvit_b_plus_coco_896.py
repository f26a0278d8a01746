_base_ = './cascadercnn_uvit_b_coco_896.py'
model = dict(backbone=dict(arch='b_plus'))
