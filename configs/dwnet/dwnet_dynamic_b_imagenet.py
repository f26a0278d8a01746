_base_ = './dwnet_t_imagenet.py'
# Published as not to be trained with AMP (abnormal gradients).
model = dict(backbone=dict(arch='dynamic_b', drop_path_rate=0.5), head=dict(in_channels=1024))
