_base_ = './maskrcnn_lit_ti_coco.py'
pretrained = 'checkpoints/lit_s.pth'

# Published with float16 (--amp) and with recomputation of blocks (with_cp=True), which here the attention of large maps does
# not need. Relative position biases and norms have no weight decay.
model = dict(
    backbone=dict(arch='s', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.), position_bias=dict(decay_mult=0.))))
