_base_ = './maskrcnn_regionvit_base_coco_3x.py'
# From the weights of base, whose kernels of regional tokens and position biases are resized.
model = dict(backbone=dict(arch='base_w14'))
