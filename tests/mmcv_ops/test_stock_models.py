"""Stock models of MMDetection and MMSegmentation that use MMCV's operators train an iteration and predict without a compiled
mmcv."""
import importlib
from importlib.util import find_spec
from pathlib import Path

import mmcv._ext
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed

from mmsimvit.analysis.benchmark.mmcv_ops import switch_to

# Config -> the operators that are called on a CPU, and what is changed.
MODELS = {
    'mmdet/faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py': (
        {'nms', 'softnms', 'roi_align_forward', 'roi_align_backward'}, {'test_cfg.rcnn.score_thr': 0.01}),
    'mmdet/pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py': (
        {'nms_match'}, {'train_cfg.rcnn.sampler.num': 16, 'train_cfg.rcnn.sampler.score_thr': 0}),
    'mmdet/dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py': ({'deform_roi_pool_forward'}, {}),
    'mmdet/dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py': ({'deform_roi_pool_backward'}, {}),
    'mmdet/dyhead/atss_r50-caffe_fpn_dyhead_1x_coco.py': ({'modulated_deform_conv_backward'}, {}),
    'mmdet/reppoints/reppoints-moment_r50_fpn_1x_coco.py': ({'deform_conv_backward_parameters'}, {}),
    'mmdet/carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py': ({'carafe_backward'}, {}),
    'mmdet/guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py': ({'masked_im2col_forward'}, {}),
    'mmseg/psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024.py': ({'psamask_backward'}, {}),
}


def build(path, changes=()):
    """A stock config's model with random weights."""
    library, _, name = path.partition('/')
    package = Path(find_spec(library).origin).parent
    cfg = Config.fromfile(package / '.mim/configs' / name)
    cfg.merge_from_dict({f'model.{key}': value for key, value in dict(changes).items()})
    cfg = cfg.model
    for part in (cfg, cfg.backbone):
        part.pop('pretrained', None)
        part.pop('init_cfg', None)
    for part in find_norms(cfg):  # one process exchanges nothing
        part.type = 'BN'
    if 'size' in cfg.data_preprocessor:
        cfg.data_preprocessor.size = (64, 64)
    importlib.import_module(f'{library}.utils').register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(library):
        model = importlib.import_module(f'{library}.registry').MODELS.build(cfg)
        model.init_weights()
        return model


def find_norms(cfg):
    if isinstance(cfg, dict):
        yield from [cfg] * (cfg.get('type') in ('SyncBN', 'MMSyncBN'))
        for part in cfg.values():
            yield from find_norms(part)
    elif isinstance(cfg, (list, tuple)):
        for part in cfg:
            yield from find_norms(part)


def make_data(path):
    """Two images of noise, and what models are to say of them."""
    if path.startswith('mmseg'):
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample
        sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64), padding_size=[0] * 4))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, 64, 64)))
        return dict(inputs=[torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)] * 2, data_samples=[sample] * 2)
    from mmdet.testing import demo_mm_inputs
    return demo_mm_inputs(2, [[3, 64, 96]] * 2, num_classes=80, with_mask=True, with_semantic=True)


def run(path, model):
    """The loss, a training step's gradients, and what is predicted."""
    data = make_data(path)
    model.train()
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
    loss.backward()
    model.eval()
    one = {key: values[:1] for key, values in data.items()}  # guided anchoring takes one image
    with torch.no_grad():
        return loss, model(**model.data_preprocessor(one, False), mode='predict')


@pytest.mark.parametrize('path', MODELS)
@pytest.mark.full
def test_trains_and_predicts(path, ours):
    operators, changes = MODELS[path]
    called = set()

    def watch(name, function):
        def watched(*args, **kwargs):
            called.add(name)
            return function(*args, **kwargs)
        return watched

    for name, function in list(vars(ours).items()):
        if callable(function) and not name.startswith('_'):
            setattr(ours, name, watch(name, function))
    model = build(path, changes)
    loss, predictions = run(path, model)
    assert loss.isfinite()
    assert len(predictions) == 1
    assert operators <= called
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.backbone.parameters())


@pytest.mark.skipif(not hasattr(mmcv._ext, '__file__'), reason='mmcv is not compiled')
def test_mask_rcnn_is_that_of_compiled_operators(ours):
    path = 'mmdet/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
    model, results = build(path), []
    for operators in (mmcv._ext, ours):
        switch_to(operators)
        set_random_seed(0)
        model.zero_grad()
        loss, (sample, ) = run(path, model)
        results.append([loss, sample.pred_instances.bboxes, sample.pred_instances.masks,
                        *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    for compiled, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, compiled, rtol=1e-4, atol=1e-5)
