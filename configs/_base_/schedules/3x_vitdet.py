# As 3x.py, with ViTDet's optimizer: 64 images a step (16 GPUs x 4), a weight decay of 0.1, none on norms, biases and positions,
# and layer-wise decay of the rate. A child sets the batch size of its loader.
_base_ = './3x.py'
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.1),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(pos_embed=dict(decay_mult=0.))))
auto_scale_lr = dict(base_batch_size=64)
