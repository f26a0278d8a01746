_base_ = './retinanet_simvit_micro_nuclei.py'
model = dict(
    backbone=dict(
        _delete_=True, type='mmdet.PyramidVisionTransformerV2', embed_dims=32, num_layers=[2, 2, 2, 2], drop_path_rate=0.))
