_base_ = ['../_base_/models/upernet.py', '../_base_/datasets/ade20k.py', '../_base_/schedules/160k_swin.py']
# The abstract speaks of dense prediction, but neither code nor configurations nor numbers that could be verified were
# published. This is ConvNeXt's recipe, in float16 (--amp), and the published loss that keeps the ratio. Its learning rate
# falls by 0.9 with each of 6 groups of blocks; here it falls with each of the 18 blocks, by the third root.
# Pretrained on ImageNet: the published weights, converted by tools/convert_checkpoint.py, or weights of ConvNeXt-T itself,
# whose predictors and fast paths start anew. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/dynamicconvnext_tiny.pth'

model = dict(
    backbone=dict(
        type='DynamicConvNeXt', arch='tiny', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.9**(1 / 3),
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(gamma=dict(decay_mult=0.))))
custom_hooks = [dict(type='RatioLossHook')]
