_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# This config is ours: the authors published neither segmentors nor code of them. The paper has 160k iterations, AdamW at 6e-5,
# 1500 of warm-up. It says nothing of weight decay, here Swin's, nor of drop path, here that of ImageNet.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or a checkpoint of
# configs/shunted/shunted_t_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/shunted_t.pth'

model = dict(
    backbone=dict(type='Shunted', arch='t', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
# Swin's norms have no weight decay. The stem's have another name, by their places.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={
    f'patch_embed.conv.{place}': dict(decay_mult=0.) for place in (1, 4, 7)}))
# Each process has two images, too few for batch norms: the stem's are synchronised.
sync_bn = 'torch'
