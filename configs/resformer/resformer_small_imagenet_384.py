_base_ = './resformer_small_imagenet.py'
# Published with larger images, too: 384, 224 and 128 pixels.
sizes = (384, 224, 128)
load, views, pack = _base_.train_pipeline
crop, *augment = views.transforms[0]
train_pipeline = [
    load, {
        **views, 'transforms': [[{**crop, 'scale': size}, *augment] for size in sizes]
    }, pack
]
model = dict(data_preprocessor=dict(sizes=sizes))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
