_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance_1024.py', '../_base_/schedules/3x.py',
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

norm_cfg = dict(type='ChannelNorm', eps=1e-6)
model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        type='ResFormer',
        arch='small',
        window_sizes=(14, 14, None) * 4,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(
        _delete_=True,
        type='SimpleFeaturePyramid',
        in_channels=[384],
        stride=16,
        out_channels=256,
        num_outs=5,
        halves_channels=False),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg)))
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.1),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys={
            'pos_embed': dict(decay_mult=0.),
            'attn.local': dict(decay_mult=0.)
        }))
auto_scale_lr = dict(base_batch_size=64)
