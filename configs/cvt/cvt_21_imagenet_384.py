_base_ = './cvt_21_imagenet.py'
# The published schedule on larger images. The fine-tuning that the published result comes from was not published.
train_pipeline = [*_base_.train_pipeline]
train_pipeline[1] = dict(train_pipeline[1], scale=384)
test_pipeline = [
    _base_.test_pipeline[0],
    dict(_base_.test_pipeline[1], scale=438),  # the ratio to the crop is that of 224
    dict(_base_.test_pipeline[2], crop_size=384), _base_.test_pipeline[3]
]
# Repeated augmentation was published for 224 x 224 pixels alone.
train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True), dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
