_base_ = [
    './_base_/models/classifier.py', './_base_/schedules/adamw_cosine.py', './_base_/classification_runtime.py'
]
# Your own images, a folder for each class: copy this config (mmsimvit.copy_config), and change these lines.
train_images, val_images = 'data/custom/train', 'data/custom/val'
num_classes = 2  # as many as there are folders in each; they are numbered in the order of their names
image_size = 224  # of what is cut out of each image
pretrained = None  # or the published weights, converted by tools/convert_checkpoint.py
layer_decay_rate = 1.  # 0.8 to 0.95 with pretrained weights, so that the first layers change least
batch_size, max_epochs, learning_rate = 32, 50, 1e-3

model = dict(
    data_preprocessor=dict(num_classes=num_classes),
    backbone=dict(
        type='SimViT',
        arch='micro',
        out_indices=(3, ),
        drop_path_rate=0.,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained) if pretrained else None),
    head=dict(num_classes=num_classes, in_channels=256, loss=dict(_delete_=True, type='CrossEntropyLoss')),
    train_cfg=None)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=image_size, crop_ratio_range=(0.3, 1.)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=image_size * 8 // 7, edge='short'),
    dict(type='CenterCrop', crop_size=image_size),
    dict(type='PackInputs')
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root=train_images, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root=val_images, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=learning_rate),
    paramwise_cfg=dict(layer_decay_rate=layer_decay_rate))
auto_scale_lr = dict(base_batch_size=batch_size)
