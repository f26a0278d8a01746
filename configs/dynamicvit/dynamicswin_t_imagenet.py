_base_ = './dynamicconvnext_t_imagenet.py'
model = dict(
    teacher='https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/'
    'swin_tiny_patch4_window7_224-160bb0a5.pth',
    backbone=dict(type='DynamicSwin', map_norms=(3, )),
    neck=dict(_delete_=True, type='GlobalAveragePooling'))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_delete_=True, position_bias=dict(decay_mult=0.))))
