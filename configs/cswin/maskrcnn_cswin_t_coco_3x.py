_base_ = [
    '../_base_/models/maskrcnn.py', '../_base_/datasets/coco_instance_ms_crop.py', '../_base_/schedules/3x.py',
    '../_base_/detection_runtime.py'
]
# The paper's 36 epochs: AdamW at 1e-4, weight decay 0.05, the short side between 480 and 800 pixels. It does not say what has
# no weight decay: norms, as in Swin's recipe. Pretrained on ImageNet: the published weights, or a checkpoint of
# configs/cswin/cswin_t_imagenet.py. From random weights instead: --cfg-options model.backbone.init_cfg=None
pretrained = 'checkpoints/cswin_tiny.pth'

model = dict(
    backbone=dict(type='CSWin', arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 256, 512]))
train_pipeline = [  # without the crop of the base
    *_base_.train_pipeline[:3],
    dict(type='RandomChoiceResize', scales=_base_.scales, keep_ratio=True),
    dict(type='PackDetInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
