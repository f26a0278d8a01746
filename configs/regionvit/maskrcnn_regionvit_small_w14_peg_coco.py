_base_ = './maskrcnn_regionvit_small_coco.py'
# From the weights of small, whose kernels of regional tokens and position biases are resized.
model = dict(backbone=dict(arch='small_w14_peg'))
