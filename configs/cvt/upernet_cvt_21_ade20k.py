_base_ = './upernet_cvt_13_ade20k.py'
# configs/cvt/cvt_21_imagenet.py, or the published weights
pretrained = 'checkpoints/cvt_21.pth'
model = dict(backbone=dict(arch='21', init_cfg=dict(checkpoint=pretrained)))
