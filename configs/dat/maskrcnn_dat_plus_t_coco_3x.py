_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance_ms_crop.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py'
]
# As published: 36 epochs, AdamW at 4e-4, weight decay 0.05 but for norms and position biases, the short side between
# 480 and 800 pixels with crops of every second image, 64 images a step (32 GPUs x 2; on fewer GPUs: --auto-scale-lr).
# The published rates of drop path, from 0 to 0.8, are not known for each model: that of ImageNet.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/dat/dat_plus_t_imagenet.py; the norms
# of the maps start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/dat_plus_tiny.pth'

model = dict(
    backbone=dict(
        type='DAT',
        arch='plus_tiny',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
optim_wrapper = dict(
    optimizer=dict(lr=4e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.), position_bias=dict(decay_mult=0.))))
auto_scale_lr = dict(base_batch_size=64)
