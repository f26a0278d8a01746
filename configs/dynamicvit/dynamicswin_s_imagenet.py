_base_ = './dynamicswin_t_imagenet.py'
model = dict(
    teacher='https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/'
    'swin_small_patch4_window7_224-cc7a01c9.pth',
    backbone=dict(arch='small'))
