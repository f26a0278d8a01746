_base_ = './gcvit_t_imagenet.py'
model = dict(
    backbone=dict(
        arch=dict(
            embed_dims=(128, 256, 512, 1024),
            num_heads=(4, 8, 16, 32),
            mlp_ratios=(2, 2, 2, 2),
            layer_scale=1e-5),
        drop_path_rate=0.5),
    head=dict(in_channels=1024))
train_dataloader = dict(batch_size=32)
