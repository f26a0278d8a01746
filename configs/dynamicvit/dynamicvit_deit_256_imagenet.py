_base_ = './dynamicvit_deit_s_imagenet.py'
# The paper's own model between DeiT's tiny and small ones: its weights before pruning are published beside its code.
model = dict(
    teacher='checkpoints/deit_256.pth', backbone=dict(arch='deit_256'), head=dict(in_channels=256))
