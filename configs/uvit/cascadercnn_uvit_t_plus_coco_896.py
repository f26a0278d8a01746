_base_ = './cascadercnn_uvit_t_coco_896.py'
model = dict(backbone=dict(arch='t_plus'))
