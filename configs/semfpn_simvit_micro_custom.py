_base_ = [
    './_base_/models/semfpn_small_heads.py', './_base_/schedules/adamw_cosine.py',
    './_base_/segmentation_runtime.py'
]
# Your own images and index masks of the same names: copy this config (mmsimvit.copy_config), and change these lines.
data_root = 'data/custom'
train_images, train_masks = 'img_dir/train', 'ann_dir/train'  # both in data_root
val_images, val_masks = 'img_dir/val', 'ann_dir/val'
image_suffix, mask_suffix = '.jpg', '.png'
classes = ('background', 'object')  # of the values 0, 1, ... of a mask; pixels of value 255 are ignored
palette = [(0, 0, 0), (220, 20, 60)]  # red, green and blue that each is drawn in; [] for any
image_scale = (640, 640)  # each image is resized to fit into this, and in training to between half and twice as much
crop_size = (256, 256)  # height and width of what is then cut out of it in training
pretrained = None  # or the published weights, converted by tools/convert_checkpoint.py
layer_decay_rate = 1.  # 0.8 to 0.95 with pretrained weights, so that the first layers change least
batch_size, max_epochs, learning_rate = 8, 50, 5e-4

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        type='SimViT',
        arch='micro',
        drop_path_rate=0.,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained) if pretrained else None),
    neck=dict(in_channels=[32, 64, 160, 256]),
    decode_head=dict(num_classes=len(classes)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    img_suffix=image_suffix,
    seg_map_suffix=mask_suffix,
    metainfo=dict(classes=classes, palette=palette))
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset, data_prefix=dict(img_path=train_images, seg_map_path=train_masks), pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path=val_images, seg_map_path=val_masks),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=learning_rate),
    paramwise_cfg=dict(layer_decay_rate=layer_decay_rate))
auto_scale_lr = dict(base_batch_size=batch_size)
