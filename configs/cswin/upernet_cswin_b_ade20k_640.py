_base_ = './upernet_cswin_b_ade20k.py'
# After ImageNet-22K, with crops of 640 x 640 pixels. The recipe was not published: that of 512 x 512 pixels.
pretrained = 'checkpoints/cswin_base_22k.pth'

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(init_cfg=dict(checkpoint=pretrained)))
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='RandomResize', scale=(2560, 640), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(640, 640), cat_max_ratio=0.75),
    *_base_.train_pipeline[4:]
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=(2560, 640), keep_ratio=True),
    *_base_.test_pipeline[2:]
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
