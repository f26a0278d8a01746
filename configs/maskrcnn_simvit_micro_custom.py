_base_ = [
    './_base_/models/maskrcnn_small_heads.py', './_base_/datasets/custom_coco.py',
    './_base_/schedules/adamw_cosine.py', './_base_/detection_runtime.py'
]
# Your own data in COCO format: copy this config (mmsimvit.copy_config), and change these lines.
data_root = 'data/custom'
train_ann_file, train_images = 'annotations/instances_train.json', 'train/'  # both in data_root
val_ann_file, val_images = 'annotations/instances_val.json', 'val/'
classes = ('object', )  # names as in the annotation files, in their order
image_scale = (640, 640)  # each image is resized to fit into this
pretrained = None  # or the published weights, converted by tools/convert_checkpoint.py
layer_decay_rate = 1.  # 0.8 to 0.95 with pretrained weights, so that the first layers change least
batch_size, max_epochs, learning_rate = 4, 24, 4e-4

metainfo = dict(classes=classes)
model = dict(
    backbone=dict(
        type='SimViT',
        arch='micro',
        drop_path_rate=0.,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained) if pretrained else None),
    neck=dict(in_channels=[32, 64, 160, 256], num_outs=5),
    rpn_head=dict(anchor_generator=dict(scales=[4, 8], strides=[4, 8, 16, 32, 64])),  # of 16 to 512 pixels
    roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))),
    train_cfg=dict(rpn_proposal=dict(nms_pre=1000, max_per_img=500), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=500), rcnn=dict(max_per_img=100)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_root=data_root,
        ann_file=train_ann_file,
        data_prefix=dict(img=train_images),
        metainfo=metainfo,
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file=val_ann_file,
        data_prefix=dict(img=val_images),
        metainfo=metainfo,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=f'{data_root}/{val_ann_file}', metric=['bbox', 'segm'])
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=learning_rate),
    paramwise_cfg=dict(layer_decay_rate=layer_decay_rate))
auto_scale_lr = dict(base_batch_size=batch_size)
