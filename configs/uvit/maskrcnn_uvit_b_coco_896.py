_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance_896.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py'
]
# The paper's Mask R-CNN. Nothing but its result and its number of operations is stated: neck, RPN and recipe are those of
# cascadercnn_uvit_t_coco_896.py, the heads are MMDetection's.
# Pretrained on ImageNet: a checkpoint of configs/uvit/uvit_b_imagenet.py, for none was published. From random weights instead:
# --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/uvit_b_imagenet.pth'

roi_extractor = dict(featmap_strides=[8, 16, 32, 64], finest_scale=112)
model = dict(
    data_preprocessor=dict(pad_size_divisor=896),
    backbone=dict(type='UViT', arch='b', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(
        in_channels=[384],
        add_extra_convs='on_output',
        relu_before_extra_convs=True,
        no_norm_on_lateral=True,
        norm_cfg=dict(type='SyncBN', requires_grad=True)),
    rpn_head=dict(num_convs=2, anchor_generator=dict(scales=[4], strides=[8, 16, 32, 64, 128])),
    roi_head=dict(bbox_roi_extractor=roi_extractor, mask_roi_extractor=roi_extractor))
optim_wrapper = dict(
    optimizer=dict(lr=1.9e-4, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0., custom_keys=dict(pos_embed=dict(decay_mult=0.))))
