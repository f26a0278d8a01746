# For small images and few classes on a CPU: heads an eighth as wide.
_base_ = './upernet.py'
model = dict(
    decode_head=dict(channels=64),
    auxiliary_head=dict(channels=32))
