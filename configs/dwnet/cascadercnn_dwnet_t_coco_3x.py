_base_ = [
    '../_base_/models/cascadercnn.py', '../_base_/datasets/coco_instance_ms_crop.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py'
]
# The published 36 epochs, in float16 (--amp). Weight decay is left out for parameters called norm, not for the batch norms in
# blocks, as published.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/dwnet/dwnet_t_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/dwnet_t.pth'

model = dict(
    backbone=dict(type='DWNet', arch='t', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
sync_bn = 'torch'
