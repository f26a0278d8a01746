_base_ = './dynamicconvnext_t_imagenet.py'
model = dict(
    teacher='https://download.openmmlab.com/mmclassification/v0/convnext/convnext-small_32xb128_in1k_20221207-4ab7052c.pth',
    backbone=dict(arch='small'))
