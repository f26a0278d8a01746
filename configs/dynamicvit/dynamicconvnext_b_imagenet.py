_base_ = './dynamicconvnext_t_imagenet.py'
model = dict(
    teacher='https://download.openmmlab.com/mmclassification/v0/convnext/convnext-base_32xb128_in1k_20221207-fbdb5eb9.pth',
    backbone=dict(arch='base', drop_path_rate=0.5),
    neck=dict(in_channels=1024),
    head=dict(in_channels=1024))
