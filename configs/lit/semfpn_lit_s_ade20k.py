_base_ = './semfpn_lit_ti_ade20k.py'
pretrained = 'checkpoints/lit_s.pth'

# As published for segmentation, the tables of relative position biases are for the grids of 512 x 512 pixels.
model = dict(
    backbone=dict(arch='s', bias_grids=(32, 16), drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]))
