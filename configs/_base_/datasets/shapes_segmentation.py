# The generated data set, with a class for each pixel; the first use writes it to data/shapes.
generated = dict(type='Shapes', root='data/shapes')
metainfo = dict(
    classes=('background', 'circle', 'square', 'triangle', 'star', 'cross', 'ring'),
    palette=[(0, 0, 0), (220, 20, 60), (0, 130, 200), (255, 225, 25), (60, 180, 75), (145, 30, 180), (245, 130, 48)])

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **generated,
        dataset=dict(
            type='BaseSegDataset',
            data_root='data/shapes/',
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            img_suffix='.png',
            metainfo=metainfo,
            pipeline=train_pipeline)))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **generated,
        dataset=dict(
            type='BaseSegDataset',
            data_root='data/shapes/',
            data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
            img_suffix='.png',
            metainfo=metainfo,
            test_mode=True,
            pipeline=test_pipeline)))
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
