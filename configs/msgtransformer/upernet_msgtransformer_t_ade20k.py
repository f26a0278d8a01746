_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# MSG-Transformer was published without segmentors. This is Swin's recipe, with norms of the maps. The drop path rate is that of
# ImageNet.
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
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
