# COCO with the augmentation of coco_instance_ms_crop.py, boxes alone.
_base_ = './coco_instance_ms_crop.py'
load_annotations = dict(type='LoadAnnotations', with_bbox=True)
train_pipeline = [_base_.train_pipeline[0], load_annotations, *_base_.train_pipeline[2:]]
test_pipeline = [*_base_.test_pipeline[:2], load_annotations, _base_.test_pipeline[3]]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_evaluator = dict(metric='bbox')
test_evaluator = dict(metric='bbox')
