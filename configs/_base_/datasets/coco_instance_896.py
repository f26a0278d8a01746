# COCO as in coco_instance.py, in squares of 896 x 896 pixels: scales between a tenth and twice that, with a crop. Detectors
# pad to the square with data_preprocessor=dict(pad_size_divisor=896).
_base_ = './coco_instance.py'
image_size = (896, 896)
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type='RandomCrop', crop_type='absolute', crop_size=image_size, recompute_bbox=True, allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=image_size, keep_ratio=True),
    *_base_.test_pipeline[2:]
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
