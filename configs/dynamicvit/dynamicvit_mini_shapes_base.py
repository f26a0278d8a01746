_base_ = '../_base_/classifier_shapes.py'
# The model that dynamicvit_mini_shapes.py begins with: smaller than any that was published, no patch is dropped, from random
# weights; minutes on two CPU cores. It has LV-ViT's stem, as patches alone learn little from so few images. Images are enlarged
# to twice their size, since patches have 16 pixels.
custom_imports = dict(imports=['mmsimvit', 'mmsimvit.classifiers'])
model = dict(
    backbone=dict(
        type='DynamicViT',
        arch='lvvit_s',
        embed_dims=96,
        depth=6,
        num_heads=4,
        stem_dims=16,
        out_type='raw',
        predictors=()),
    neck=None,
    head=dict(type='TokenClsHead', in_channels=96, has_aux=True))
load, *rest = _base_.train_pipeline
train_pipeline = [load, dict(type='Resize', scale=128), *rest]
test_pipeline = [load, dict(type='Resize', scale=128), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(dataset=dict(pipeline=test_pipeline)))
test_dataloader = dict(dataset=dict(dataset=dict(pipeline=test_pipeline)))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(cls_token=dict(decay_mult=0.), pos_embed=dict(decay_mult=0.))))
