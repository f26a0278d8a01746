# For small images and few classes on a CPU: a quarter of FPN's channels, half of the head's.
_base_ = './semfpn.py'
model = dict(
    neck=dict(out_channels=64),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64))
