_base_ = './semfpn_p2t_tiny_ade20k.py'
pretrained = 'checkpoints/p2t_base.pth'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 320, 512]))
optim_wrapper = dict(clip_grad=dict(max_norm=35))  # published for base and large alone
