_base_ = './gcvit_t_imagenet.py'
model = dict(
    backbone=dict(
        arch=dict(
            embed_dims=(192, 384, 768, 1536),
            num_heads=(6, 12, 24, 48),
            mlp_ratios=(2, 2, 2, 2),
            layer_scale=1e-5),
        drop_path_rate=0.5),
    head=dict(in_channels=1536))
train_dataloader = dict(batch_size=32)
