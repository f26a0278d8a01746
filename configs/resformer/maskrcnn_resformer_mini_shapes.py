_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores. Images are enlarged by half,
# since patches have 16 pixels.
model = dict(
    backbone=dict(
        type='ResFormer', arch='tiny', depth=6, window_sizes=(6, 6, None) * 2, drop_path_rate=0.),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=[192], stride=16, out_channels=64, num_outs=4))
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    *_base_.train_pipeline[2:]
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    *_base_.test_pipeline[2:]
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(dataset=dict(pipeline=test_pipeline)))
test_dataloader = dict(dataset=dict(dataset=dict(pipeline=test_pipeline)))
train_cfg = dict(max_epochs=4)  # which takes less than ten minutes
