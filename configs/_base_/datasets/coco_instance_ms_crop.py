# COCO as in coco_instance.py, with the augmentation of DETR: many scales, and a crop of every second image.
_base_ = './coco_instance.py'
scales = [(short, 1333) for short in range(480, 801, 32)]
multi_scale_crop = dict(
    type='RandomChoice',
    transforms=[[dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)],
                [
                    dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                    dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                    dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
                ]])
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='RandomFlip', prob=0.5), multi_scale_crop,
    dict(type='PackDetInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
