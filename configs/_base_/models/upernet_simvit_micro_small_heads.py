# For small images and few classes on a CPU: heads an eighth as wide.
_base_ = './upernet_simvit.py'
model = dict(
    backbone=dict(arch='micro', drop_path_rate=0.),
    decode_head=dict(in_channels=[32, 64, 160, 256], channels=64),
    auxiliary_head=dict(in_channels=160, channels=32))
