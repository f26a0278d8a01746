_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores. The pyramid is ViTDet's.
model = dict(
    backbone=dict(
        type='UViT',
        arch='t_plus',
        embed_dims=128,
        num_heads=2,
        depth=6,
        windows=(4, 4, 4, 2, 1, 1),
        grid=(16, 16),  # that of 128 x 128 pixels
        drop_path_rate=0.),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=[128], stride=8, out_channels=64, num_outs=4))
train_cfg = dict(max_epochs=5)  # which takes less than ten minutes
