_base_ = './gcvit_t_imagenet.py'
model = dict(backbone=dict(arch='small2', drop_path_rate=0.35), head=dict(in_channels=768))
train_dataloader = dict(batch_size=32)
