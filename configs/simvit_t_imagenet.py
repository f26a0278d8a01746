_base_ = [
    './_base_/models/classifier_simvit.py', './_base_/datasets/imagenet.py',
    './_base_/schedules/imagenet_300e.py', './_base_/classification_runtime.py'
]
# Pretrained weights to start from, such as the published ones, converted by tools/convert_checkpoint.py: here none.
pretrained = None

model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained) if pretrained else None))
