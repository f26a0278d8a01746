_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e_swin.py',
    '../_base_/classification_runtime.py'
]
# As published, at 1024 images a step (8 GPUs x 128): Swin's recipe, which multiplies the first and the last rate by the images
# too.
model = dict(
    backbone=dict(type='DAT', arch='tiny', out_indices=(3, ), drop_path_rate=0.2),
    head=dict(in_channels=768))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300, convert_to_iter_based=True)
]
