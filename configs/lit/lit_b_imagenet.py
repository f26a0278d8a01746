_base_ = './lit_s_imagenet.py'
model = dict(
    backbone=dict(
        arch=dict(embed_dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
        drop_path_rate=0.5),
    head=dict(in_channels=1024))
