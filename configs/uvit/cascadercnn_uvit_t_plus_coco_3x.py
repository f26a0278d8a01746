_base_ = [
    '../_base_/models/cascadercnn.py', '../_base_/datasets/coco_instance_896.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py'
]
# The usual Cascade Mask R-CNN, with three box heads on maps of the strides 4 to 64, which ViTDet's pyramid makes. Nobody
# published it with UViT: all is ours, the recipe that of cascadercnn_uvit_t_coco_896.py.
# Pretrained on ImageNet: a checkpoint of configs/uvit/uvit_t_imagenet.py, for none was published. From random weights instead:
# --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/uvit_t_imagenet.pth'

model = dict(
    data_preprocessor=dict(pad_size_divisor=896),
    backbone=dict(type='UViT', arch='t_plus', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=[222], stride=8, out_channels=256, num_outs=5))
optim_wrapper = dict(
    optimizer=dict(lr=1.9e-4, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0., custom_keys=dict(pos_embed=dict(decay_mult=0.))))
