# Mask R-CNN with ViTDet's design, on the one map of a plain backbone: a pyramid of it, an RPN of two convolutions, and heads of
# four with layer norms. Images are padded to squares of 1024 x 1024 pixels. A child adds the backbone, and in_channels of the
# neck.
_base_ = './maskrcnn.py'
norm_cfg = dict(type='ChannelNorm', eps=1e-6)
model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', stride=16, out_channels=256, num_outs=5),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg)))
