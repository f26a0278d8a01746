_base_ = './dynamicswin_t_imagenet.py'
model = dict(
    teacher='https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/'
    'swin_base_patch4_window7_224-4670dd19.pth',
    backbone=dict(arch='base', drop_path_rate=0.5),
    head=dict(in_channels=1024))
