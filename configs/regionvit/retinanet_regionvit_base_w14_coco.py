_base_ = './retinanet_regionvit_base_coco.py'
# From the weights of base, whose kernels of regional tokens and position biases are resized.
model = dict(backbone=dict(arch='base_w14'))
