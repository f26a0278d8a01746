# COCO as in coco_instance_896.py, in squares of 1024 x 1024 pixels, as ViTDet has it.
_base_ = './coco_instance_896.py'
image_size = (1024, 1024)
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_type='absolute', crop_size=image_size, recompute_bbox=True, allow_negative_crop=True),
    *_base_.train_pipeline[4:]
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=image_size, keep_ratio=True),
    *_base_.test_pipeline[2:]
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
