_base_ = './semfpn_lit_ti_ade20k.py'
pretrained = 'checkpoints/lit_s.pth'

# As published for segmentation, the tables of relative position biases are for the grids of 512 x 512 pixels.
arch = dict(
    _delete_=True,  # the name in the base
    embed_dims=(96, 192, 384, 768),
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    mlp_ratios=(4, 4, 4, 4),
    position_grids=None,
    bias_grids=(32, 16),
    norm_eps=1e-5,
    map_norms=(1, 2, 3))
model = dict(
    backbone=dict(arch=arch, drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
