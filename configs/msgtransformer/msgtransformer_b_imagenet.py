_base_ = './msgtransformer_t_imagenet.py'
# Published with 16 GPUs x 64.
model = dict(backbone=dict(arch='base', drop_path_rate=0.5), head=dict(in_channels=768))
train_dataloader = dict(batch_size=64)
