_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# The authors give no numbers, but write that they follow PVT's code exactly. These are its settings: ten epochs at the lowest
# rate follow the 300, gradients are not clipped. Drop path is that of PVT-Small. The published dropout of 0.2 before the
# classifier is left out: no head of MMPreTrain has it.
model = dict(
    backbone=dict(type='HATNet', arch='tiny', out_indices=(3, ), drop_path_rate=0.1),
    head=dict(in_channels=384))
train_cfg = dict(max_epochs=310)
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
