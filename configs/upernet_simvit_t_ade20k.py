_base_ = ['./_base_/models/upernet.py', './_base_/datasets/ade20k.py', './_base_/schedules/160k.py']
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/simvit_t_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/simvit_tiny.pth'

model = dict(
    backbone=dict(type='SimViT', arch='tiny', init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320))
