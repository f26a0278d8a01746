_base_ = './dat_plus_t_imagenet.py'
model = dict(
    backbone=dict(arch='plus_base', drop_path_rate=0.7),
    head=dict(in_channels=1024))
# 64 images a GPU, as published, on 16 of them.
train_dataloader = dict(batch_size=64)
