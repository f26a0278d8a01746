_base_ = './dynamicconvnext_t_imagenet.py'
# Also published with 90 % of the positions on the slow way.
model = dict(backbone=dict(keep_ratio=0.9))
