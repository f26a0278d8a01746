_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_300e.py',
    '../_base_/classification_runtime.py'
]
# The paper's: DeiT's recipe at 1024 images a step, with patches of 16 x 16 pixels. The published number of operations fits
# attention over the whole map, not windows. The drop path rate is ours, for none is stated.
# Dense configs begin with a checkpoint of this one, whose kernels and positions are resized when it is loaded: there are no
# published weights.
model = dict(
    backbone=dict(
        type='UViT', arch='t', patch_size=16, grid=(14, 14), windows=(1, ) * 18, drop_path_rate=0.1),
    head=dict(in_channels=222))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(pos_embed=dict(decay_mult=0.))))
