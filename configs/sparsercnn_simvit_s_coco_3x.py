_base_ = [
    './_base_/models/sparsercnn.py', './_base_/datasets/coco_detection_ms_crop.py',
    './_base_/schedules/3x.py', './_base_/detection_runtime.py'
]
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/simvit_s_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/simvit_small.pth'

# SimViT's publication names no number of proposals: that of the base.
model = dict(
    backbone=dict(type='SimViT', arch='small', init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 320, 512]))
# SimViT's publication names no rates for Sparse R-CNN: those of MMDetection's, which PVT v2 divides by 1.4 for 8 images a step.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2.5e-5, weight_decay=1e-4),
    paramwise_cfg=None,
    clip_grad=dict(max_norm=1, norm_type=2))
