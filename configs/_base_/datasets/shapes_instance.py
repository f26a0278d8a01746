# The generated data set; the first use writes it to data/shapes.
generated = dict(type='Shapes', root='data/shapes')
metainfo = dict(
    classes=('circle', 'square', 'triangle', 'star', 'cross', 'ring'),
    palette=[(220, 20, 60), (0, 130, 200), (255, 225, 25), (60, 180, 75), (145, 30, 180), (245, 130, 48)])

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **generated,
        dataset=dict(
            type='CocoDataset',
            data_root='data/shapes/',
            ann_file='annotations/instances_training.json',
            data_prefix=dict(img='images/training/'),
            metainfo=metainfo,
            filter_cfg=dict(filter_empty_gt=True),
            pipeline=train_pipeline)))
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **generated,
        dataset=dict(
            type='CocoDataset',
            data_root='data/shapes/',
            ann_file='annotations/instances_validation.json',
            data_prefix=dict(img='images/validation/'),
            metainfo=metainfo,
            test_mode=True,
            pipeline=test_pipeline)))
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric', ann_file='data/shapes/annotations/instances_validation.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
