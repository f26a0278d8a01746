_base_ = '../_base_/classifier_shapes.py'
# A smaller one than was published, from random weights; minutes on two CPU cores. Images are enlarged to twice their size,
# since patches have 16 pixels. It learns from one resolution; resformer_mini_shapes_multi.py learns from three.
model = dict(
    backbone=dict(
        type='ResFormer', arch='tiny', embed_dims=96, depth=6, out_type='cls_token', drop_path_rate=0.),
    neck=None,
    head=dict(in_channels=96))
load, *rest = _base_.train_pipeline
train_pipeline = [load, dict(type='Resize', scale=128), *rest]
test_pipeline = [load, dict(type='Resize', scale=128), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(dataset=dict(pipeline=test_pipeline)))
test_dataloader = dict(dataset=dict(dataset=dict(pipeline=test_pipeline)))
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'cls_token': dict(decay_mult=0.),
            'pos_embed': dict(decay_mult=0.),
            'attn.local': dict(decay_mult=0.)
        }))
