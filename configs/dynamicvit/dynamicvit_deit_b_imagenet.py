_base_ = './dynamicvit_deit_s_imagenet.py'
model = dict(
    teacher=_base_.backbones.DeiT.b.settings.init_cfg.checkpoint,
    ratio_weight=5.0,
    backbone=dict(arch='deit_b', drop_path_rate=0.2),
    head=dict(in_channels=768))
