_base_ = './shunted_t_imagenet.py'
model = dict(backbone=dict(arch='b', drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
