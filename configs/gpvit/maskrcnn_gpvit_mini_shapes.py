_base_ = '../_base_/maskrcnn_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores, since ViTDet's pyramid is in place of the
# adapter, which costs several times the backbone on images so small.
model = dict(
    backbone=dict(
        type='GPViT', arch='l1', embed_dims=96, group_tokens=(16, 16, 16, 16), out_indices=-1, drop_path_rate=0.),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=[96], stride=8, out_channels=64, num_outs=4))
train_cfg = dict(max_epochs=4)  # which takes less than ten minutes
