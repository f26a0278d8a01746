_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e_swin.py',
    '../_base_/classification_runtime.py'
]
# As published, but the last norm: a batch norm as in the published detectors, where the classifiers have a layer norm.
model = dict(
    backbone=dict(type='DWNet', arch='t', out_indices=(3, ), drop_path_rate=0.2),
    head=dict(in_channels=768))
