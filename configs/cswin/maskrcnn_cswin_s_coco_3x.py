_base_ = './maskrcnn_cswin_t_coco_3x.py'
pretrained = 'checkpoints/cswin_small.pth'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint=pretrained)))
