_base_ = './maskrcnn_dat_t_coco.py'
pretrained = 'checkpoints/dat_small.pth'

model = dict(
    backbone=dict(arch='small_det', drop_path_rate=0.3, init_cfg=dict(checkpoint=pretrained)))
