# The backbones of MMDetection and MMPreTrain that have configs here, by paper and variant: the channels of the maps, and the
# settings, with the weights of ImageNet that its library links to. These are downloaded when a training begins. From random
# weights instead: --cfg-options model.backbone.init_cfg=None. A child takes a row and adds what its recipe says:
# dict(**_base_.backbones.Swin.s.settings, drop_path_rate=0.2). Maps have the strides 4, 8, 16 and 32; DeiT's only one has 16.
# The rows of a paper set the same arguments, so that a child of another child leaves nothing of its parent's.
backbones = {
    paper: {
        variant: dict(
            channels=channels,
            settings=dict(
                **kind, **sizes, init_cfg=dict(type='Pretrained', checkpoint=folder + file, prefix=prefix)))
        for variant, (channels, sizes, file) in variants.items()
    }
    for paper, kind, folder, prefix, variants in [
        ('Swin', dict(type='mmdet.SwinTransformer', convert_weights=True),
         'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/', None, dict(
            t=([96, 192, 384, 768], dict(embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]),
               'swin_tiny_patch4_window7_224.pth'),
            s=([96, 192, 384, 768], dict(embed_dims=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24]),
               'swin_small_patch4_window7_224.pth'),
            b=([128, 256, 512, 1024], dict(embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]),
               'swin_base_patch4_window7_224.pth'))),
        ('PVT', dict(type='mmdet.PyramidVisionTransformer', embed_dims=64),
         'https://github.com/whai362/PVT/releases/download/v2/', None, dict(
            t=([64, 128, 320, 512], dict(num_layers=[2, 2, 2, 2]), 'pvt_tiny.pth'),
            s=([64, 128, 320, 512], dict(num_layers=[3, 4, 6, 3]), 'pvt_small.pth'),
            m=([64, 128, 320, 512], dict(num_layers=[3, 4, 18, 3]), 'pvt_medium.pth'),
            l=([64, 128, 320, 512], dict(num_layers=[3, 8, 27, 3]), 'pvt_large.pth'))),
        ('PVTv2', dict(type='mmdet.PyramidVisionTransformerV2'),
         'https://github.com/whai362/PVT/releases/download/v2/', None, dict(
            b0=([32, 64, 160, 256], dict(embed_dims=32, num_layers=[2, 2, 2, 2], mlp_ratios=[8, 8, 4, 4]), 'pvt_v2_b0.pth'),
            b1=([64, 128, 320, 512], dict(embed_dims=64, num_layers=[2, 2, 2, 2], mlp_ratios=[8, 8, 4, 4]), 'pvt_v2_b1.pth'),
            b2=([64, 128, 320, 512], dict(embed_dims=64, num_layers=[3, 4, 6, 3], mlp_ratios=[8, 8, 4, 4]), 'pvt_v2_b2.pth'),
            b3=([64, 128, 320, 512], dict(embed_dims=64, num_layers=[3, 4, 18, 3], mlp_ratios=[8, 8, 4, 4]), 'pvt_v2_b3.pth'),
            b4=([64, 128, 320, 512], dict(embed_dims=64, num_layers=[3, 8, 27, 3], mlp_ratios=[8, 8, 4, 4]), 'pvt_v2_b4.pth'),
            b5=([64, 128, 320, 512], dict(embed_dims=64, num_layers=[3, 6, 40, 3], mlp_ratios=[4, 4, 4, 4]), 'pvt_v2_b5.pth'))),
        ('Twins', dict(out_indices=(0, 1, 2, 3), qkv_bias=True),
         'https://download.openmmlab.com/mmclassification/v0/twins/twins-', 'backbone.', dict(
            pcpvt_s=([64, 128, 320, 512], dict(type='mmpretrain.PCPVT', arch='small', norm_cfg=dict(type='LN', eps=1e-6)),
                     'pcpvt-small_3rdparty_8xb128_in1k_20220126-ef23c132.pth'),
            pcpvt_b=([64, 128, 320, 512], dict(type='mmpretrain.PCPVT', arch='base', norm_cfg=dict(type='LN', eps=1e-6)),
                     'pcpvt-base_3rdparty_8xb128_in1k_20220126-f8c4b0d5.pth'),
            svt_s=([64, 128, 256, 512], dict(type='mmpretrain.SVT', arch='small', norm_after_stage=True),
                   'svt-small_3rdparty_8xb128_in1k_20220126-8fe5205b.pth'),
            svt_b=([96, 192, 384, 768], dict(type='mmpretrain.SVT', arch='base', norm_after_stage=True),
                   'svt-base_3rdparty_8xb128_in1k_20220126-e31cc8e9.pth'))),
        ('MViTv2', dict(type='mmpretrain.MViT', out_scales=[0, 1, 2, 3]),
         'https://download.openmmlab.com/mmclassification/v0/mvit/mvitv2-', 'backbone.', dict(
            t=([96, 192, 384, 768], dict(arch='tiny'), 'tiny_3rdparty_in1k_20220722-db7beeef.pth'),
            s=([96, 192, 384, 768], dict(arch='small'), 'small_3rdparty_in1k_20220722-986bd741.pth'),
            b=([96, 192, 384, 768], dict(arch='base'), 'base_3rdparty_in1k_20220722-9c4f0a17.pth'))),
        ('DeiT', dict(type='mmpretrain.VisionTransformer', out_type='featmap'),
         'https://download.openmmlab.com/mmclassification/v0/deit/deit-', 'backbone.', dict(
            s=([384], dict(arch='deit-small'), 'small_pt-4xb256_in1k_20220218-9425b9bb.pth'),
            b=([768], dict(arch='deit-base'), 'base_pt-16xb64_in1k_20220216-db63c16c.pth')))
    ]
}
