_base_ = './dynamicvit_mini_shapes_base.py'
# The whole method: begins with the weights of dynamicvit_mini_shapes_base.py, which also are the teacher.
model = dict(
    type='DynamicClassifier',
    teacher='work_dirs/dynamicvit_mini_shapes_base/epoch_12.pth',
    backbone=dict(predictors=(2, 3, 4), keep_ratio=0.7))
train_cfg = dict(max_epochs=6)
optim_wrapper = dict(
    constructor='NewPartsOptimWrapperConstructor',
    paramwise_cfg=dict(
        new_parts=['predictors'],
        pretrained_lr_mult=0.1,
        custom_keys=dict(cls_token=dict(lr_mult=0.), pos_embed=dict(lr_mult=0.))))
custom_hooks = [dict(type='HoldPretrainedHook', epochs=1)]
