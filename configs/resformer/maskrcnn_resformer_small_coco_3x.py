_base_ = [
    '../_base_/models/maskrcnn_vitdet.py', '../_base_/datasets/coco_instance_1024.py', '../_base_/schedules/3x_vitdet.py',
    '../_base_/detection_runtime.py'
]
# The paper's Mask R-CNN with ViTDet's design and 36 epochs. Published are the results and the number of parameters, which fits
# this one: a pyramid whose channels are not halved, an RPN of two convolutions, and heads of four with layer norms.
# The rest is ViTDet's, since the paper is silent: windows of 14 x 14 patches but in every third block, squares of 1024 x 1024
# pixels, 64 images a step (16 GPUs x 4), AdamW at 1e-4 with a weight decay of 0.1 and layer-wise decay of the rate, and drop
# path. What has no weight decay is that of ResFormer's ImageNet recipe. The fall of the rate is that of our 3x schedule.
# Pretrained on ImageNet: the published weights, or a checkpoint of configs/resformer/resformer_small_imagenet.py, which sees
# one resolution. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/resformer_small.pth'

model = dict(
    backbone=dict(
        type='ResFormer',
        arch='small',
        window_sizes=(14, 14, None) * 4,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[384], halves_channels=False))
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'attn.local': dict(decay_mult=0.)}))
