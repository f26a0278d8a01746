_base_ = './regionvit_small_imagenet.py'
model = dict(backbone=dict(arch='tiny'), head=dict(in_channels=512))
