_base_ = './cvt_13_imagenet_384.py'
# The published file for 384 x 384 pixels, whose schedule is that of the smaller ones. The published result is of weights that
# were trained on ImageNet-22k before.
model = dict(backbone=dict(arch='w24', drop_path_rate=0.3), head=dict(in_channels=1024))
