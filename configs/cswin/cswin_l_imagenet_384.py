_base_ = './cswin_b_imagenet_384.py'
# From weights of ImageNet-22K, whose training needs that data. The drop path rate is published, the rest is base's recipe.
pretrained = 'checkpoints/cswin_large_22k.pth'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    head=dict(in_channels=576))
