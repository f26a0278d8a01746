# For small images and few classes on a CPU: a quarter of FPN's channels, half of the head's.
_base_ = './semfpn_simvit.py'
model = dict(
    backbone=dict(arch='micro', drop_path_rate=0.),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=64),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64))
