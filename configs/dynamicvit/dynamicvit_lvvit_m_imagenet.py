_base_ = './dynamicvit_lvvit_s_imagenet.py'
model = dict(teacher='checkpoints/lvvit_m.pth', backbone=dict(arch='lvvit_m'), head=dict(in_channels=512))
