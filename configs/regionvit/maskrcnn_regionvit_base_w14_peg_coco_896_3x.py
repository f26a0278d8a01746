_base_ = './maskrcnn_regionvit_base_w14_peg_coco_3x.py'
# As published, larger images: the long side has up to 1344 pixels, and 896 x 1344 pixels are tested.
scales = [(1344, short) for short in range(480, 897, 32)]
resize = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(
        type='RandomChoice',
        transforms=[[resize],
                    [
                        dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                        dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                        resize
                    ]]),
    dict(type='PackDetInputs')
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=(1344, 896), keep_ratio=True),
    *_base_.test_pipeline[2:]
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
