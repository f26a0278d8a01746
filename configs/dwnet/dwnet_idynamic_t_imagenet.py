_base_ = './dwnet_t_imagenet.py'
# Published classifiers, and so these, have no norm of the maps; the published final layer norm is not there. Published
# without AMP, 64 images on each of 8 GPUs, two steps accumulated.
model = dict(backbone=dict(arch='idynamic_t'))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=2)
