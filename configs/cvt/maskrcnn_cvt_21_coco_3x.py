_base_ = './maskrcnn_cvt_13_coco_3x.py'
# configs/cvt/cvt_21_imagenet.py, or the published weights
pretrained = 'checkpoints/cvt_21.pth'
model = dict(backbone=dict(arch='21', init_cfg=dict(checkpoint=pretrained)))
