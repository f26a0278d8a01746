_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance_ms_crop.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py'
]
# This config is ours, as configs/shunted/maskrcnn_shunted_t_coco.py says. The paper has 36 epochs, AdamW at 1e-4 and short
# sides of 480 to 800 pixels; the rest is Swin's recipe, and drop path that of ImageNet.
pretrained = 'checkpoints/shunted_s.pth'

model = dict(
    backbone=dict(type='Shunted', arch='s', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
# Swin's norms have no weight decay. The stem's have another name, by their places.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={
    f'patch_embed.conv.{place}': dict(decay_mult=0.) for place in (1, 4, 7)}))
sync_bn = 'torch'
