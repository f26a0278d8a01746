# For small images and few classes on a CPU: a quarter of the channels, half of the convolutions, smaller anchors.
_base_ = './retinanet.py'
model = dict(
    neck=dict(out_channels=64, num_outs=4),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=2, strides=[8, 16, 32, 64])))
