_base_ = './hatnet_tiny_imagenet.py'
# No drop path was published. This is that of P2T's variants of the size.
model = dict(backbone=dict(arch='medium', drop_path_rate=0.3), head=dict(in_channels=512))
