_base_ = './dynamicvit_lvvit_s_imagenet.py'
# Also published with half of the patches kept at the first predictor.
model = dict(backbone=dict(keep_ratio=0.5))
