_base_ = [
    '../_base_/models/cascadercnn.py', '../_base_/datasets/coco_instance_896.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py'
]
# The paper's Cascade Mask R-CNN at 896 x 896 pixels: AdamW, 3e-3 at 256 images, here for 16, weight decay 1e-4. The published
# parameters fit maps of the strides 8 to 128, an RPN of two convolutions, two box heads without classes, and one mask head.
# MMDetection has a mask head for each box head: 2.6 M more.
# Ours, since the paper is silent: 36 epochs, their schedule and warm-up, the range of scales, the thresholds and weights of the
# two heads, the sizes of anchors, the drop path rates, and that norms, biases and positions have no weight decay.
# Pretrained on ImageNet: a checkpoint of configs/uvit/uvit_t_imagenet.py, for none was published. From random weights instead:
# --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/uvit_t_imagenet.pth'

roi_extractor = dict(featmap_strides=[8, 16, 32, 64], finest_scale=112)
model = dict(
    data_preprocessor=dict(pad_size_divisor=896),
    backbone=dict(type='UViT', arch='t', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(
        in_channels=[222],
        add_extra_convs='on_output',
        relu_before_extra_convs=True,
        no_norm_on_lateral=True,
        norm_cfg=dict(type='SyncBN', requires_grad=True)),
    rpn_head=dict(num_convs=2, anchor_generator=dict(scales=[4], strides=[8, 16, 32, 64, 128])),
    roi_head=dict(
        num_stages=2,
        stage_loss_weights=[1, 0.5],
        bbox_roi_extractor=roi_extractor,
        bbox_head=[{**head, 'reg_class_agnostic': True} for head in _base_.model.roi_head.bbox_head[:2]],
        mask_roi_extractor=roi_extractor),
    train_cfg=dict(rcnn=_base_.model.train_cfg.rcnn[1:]))
optim_wrapper = dict(
    optimizer=dict(lr=1.9e-4, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0., custom_keys=dict(pos_embed=dict(decay_mult=0.))))
