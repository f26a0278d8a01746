_base_ = './retinanet_regionvit_base_w14_peg_coco.py'
# As published, larger images: 896 x 1344 pixels. The short side of those in training is not stated: that of the tests.
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='Resize', scale=(1344, 896), keep_ratio=True),
    *_base_.train_pipeline[3:]
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=(1344, 896), keep_ratio=True),
    *_base_.test_pipeline[2:]
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
