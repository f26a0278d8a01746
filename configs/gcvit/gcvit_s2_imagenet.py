_base_ = './gcvit_t_imagenet.py'
model = dict(
    backbone=dict(
        arch=dict(
            embed_dims=(96, 192, 384, 768),
            depths=(3, 4, 23, 5),
            num_heads=(3, 6, 12, 24),
            layer_scale=1e-5),
        drop_path_rate=0.35),
    head=dict(in_channels=768))
train_dataloader = dict(batch_size=32)
