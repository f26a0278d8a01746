_base_ = './cascadercnn_dwnet_t_coco_3x.py'
pretrained = 'checkpoints/dwnet_dynamic_t.pth'

model = dict(backbone=dict(arch='dynamic_t', init_cfg=dict(checkpoint=pretrained)))
