_base_ = './dynamicvit_deit_s_imagenet.py'
# From the weights of LV-ViT, https://github.com/zihangJiang/TokenLabeling, which also scores patches.
model = dict(teacher='checkpoints/lvvit_s.pth', backbone=dict(arch='lvvit_s'), head=dict(has_aux=True))
