_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance_ms_crop.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py'
]
# MSG-Transformer was published with Cascade Mask R-CNN alone, as it seems. This is Swin's recipe, with norms of the maps. The
# drop path rate is that of ImageNet.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/msgtransformer/msgtransformer_t_imagenet.py. From random weights instead:
# --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/msgtransformer_tiny.pth'

model = dict(
    backbone=dict(
        type='MSGTransformer',
        arch='tiny',
        map_norms=(0, 1, 2, 3),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(position_bias=dict(decay_mult=0.))))
