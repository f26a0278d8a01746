"""Another backbone in stock configs, one of each family of the three libraries: the config that is written is built and run."""
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmsimvit import SimViT
from mmsimvit.cli.swap import main
from mmsimvit.dry_run import dry_run
from mmsimvit.errors import ConfigError, ModelError
from mmsimvit.fitting import build
from mmsimvit.models import build_model
from mmsimvit.swap import swap
from tests.conftest import ROOT
from tests.mmcv_ops.test_stock_models import make_data

FAMILIES = (ROOT / 'tests/stock_families.txt').read_text().split()
QUICK = {'atss_r50', 'yolox_tiny', 'yolov3_d53', 'ssd300', 'libra-retinanet', 'detr_r50', 'faster-rcnn_r50-caffe-c4',
         'fcn_r50', 'segformer', 'resnet50_8xb32_in1k', 'mocov2'}
# What the tool says of those that it cannot do.
MISSES = {
    'cornernet': 'this model does not take the maps of SimViT: bbox_head.*takes 256 channels',  # two maps of stride 4
    'detectors/cascade-rcnn_r50-rfp': 'this model does not take the maps of SimViT: neck',  # it feeds maps back into its ResNet
    'dpt_vit': 'decode_head.reassemble_blocks',  # tokens and a class token of a plain ViT
    'lraspp': 'decode_head.image_pool.0',  # pools 49 x 49 pixels of a map of stride 8
    'setr_vit-l-mla': 'decode_head: Sizes of tensors must match',  # four maps of one stride
    'tridentnet': 'this model does not take the maps of SimViT',  # a backbone that gives three branches as a batch
}
if find_spec('skimage') is None:
    MISSES['boxinst'] = 'skimage is not installed'
TRAINED = ('retinanet/retinanet_r50', 'faster_rcnn/faster-rcnn_r50_', 'gfl/gfl_r50', 'yolox_tiny', 'libra-retinanet', 'c4_ms',
           'dyhead', 'fcos_r50', 'detr_r50_8xb2-150e', 'mask-rcnn_r50_fpn_1x', 'fcn_r50', 'upernet_r50', 'ocrnet_r101',
           'psp_4xb4', 'segformer', 'setr_vit-l_naive')


def put_in(name, tmp_path, backbone, **settings):
    done = swap(name, backbone, folder=str(tmp_path), **settings)
    (tmp_path / 'swapped.py').write_text(done.text)
    return done, Config.fromfile(tmp_path / 'swapped.py')


@pytest.mark.parametrize('name', [pytest.param(name, marks=[] if any(word in name for word in QUICK) else pytest.mark.full)
                                  for name in FAMILIES])
def test_every_family(name, tmp_path):
    reason = next((reason for word, reason in MISSES.items() if word in name), None)
    if reason:
        with pytest.raises(ModelError, match=reason):
            swap(name, dict(type='SimViT', arch='micro'), folder=str(tmp_path))
        return
    done, cfg = put_in(name, tmp_path, dict(type='SimViT', arch='micro'))
    model = build(cfg.model, cfg.default_scope)
    seen = dry_run(model)
    assert seen == done.seen
    assert seen.misfit is None
    backbone = next(module for module in model.modules() if isinstance(module, SimViT))
    assert (tuple(seen.widths), tuple(seen.strides)) == (backbone.out_channels, backbone.strides)
    assert seen.read


@pytest.mark.full
@pytest.mark.parametrize('name', [name for name in FAMILIES if any(word in name for word in TRAINED)])
def test_a_tenth_is_trained(name, tmp_path):
    _, cfg = put_in(name, tmp_path, dict(type='SimViT', arch='micro'))
    for part in (cfg.model, cfg.model.data_preprocessor):
        if 'size' in part:
            part.size = (64, 64)
    cfg.model.data_preprocessor.batch_augments = None
    for _, part in nodes(cfg.model):
        if part.get('type') == 'SyncBN':
            part.type = 'BN'
    model = build_model(cfg).train()
    model.backbone.init_weights()
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        data = make_data(name.replace('::', '/'))
        loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
    loss.backward()
    assert loss.isfinite()
    used = [parameter for name, parameter in model.backbone.named_parameters() if parameter.grad is not None]
    assert any(parameter.grad.any() for parameter in used)


def nodes(node, path=()):
    if isinstance(node, dict):
        yield path, node
    for key, part in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ():
        yield from nodes(part, (*path, key))


def test_what_is_written(tmp_path, monkeypatch, capsys):
    """Only what has to change, with the reasons; pixels of ImageNet, AdamW, and the inherited schedule."""
    monkeypatch.chdir(tmp_path)
    main(['mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', '--backbone', 'SimViT:tiny'])
    path = Path('yolox_tiny_8xb8-300e_coco_simvit_tiny.py')
    assert f'{path}: SimViT gives maps of [128, 320, 512] channels and strides [8, 16, 32]' in capsys.readouterr().out
    cfg, base = Config.fromfile(path), Config.fromfile(Config._get_cfg_path('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', '')[0])
    assert cfg.model.backbone == dict(type='SimViT', arch='tiny', out_indices=(1, 2, 3))
    assert cfg.model.neck == {**base.model.neck, 'in_channels': [128, 320, 512]}
    assert cfg.model.bbox_head == base.model.bbox_head
    preprocessor = cfg.model.data_preprocessor
    assert (preprocessor.mean, preprocessor.bgr_to_rgb) == ([123.675, 116.28, 103.53], True)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=4e-4, weight_decay=0.05)  # 1e-4 for 16 images, of 64
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.)
    assert cfg.param_scheduler[1].eta_min == pytest.approx(4e-4 * 0.05)  # in the proportion of the old one
    assert '# the widths of the maps that it takes' in path.read_text()
    with pytest.raises(SystemExit, match=f'error: {path} exists already; name another with --out'):
        main(['mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', '--backbone', 'SimViT:tiny'])
    main(['mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', '--backbone', 'SimViT:tiny', '--out', 'kept.py', '--keep-optimizer'])
    assert Config.fromfile('kept.py').optim_wrapper.optimizer == base.optim_wrapper.optimizer


def test_norms_that_nothing_reads_are_left_out(tmp_path):
    done, cfg = put_in('mmdet::atss/atss_r50_fpn_1x_coco.py', tmp_path, dict(type='GCViT', arch='xxtiny'))
    assert (cfg.model.backbone.out_indices, cfg.model.neck.in_channels, cfg.model.neck.start_level) == (
        (1, 2, 3), [128, 256, 512], 0)
    assert done.seen.read == [0, 1, 2]
    done, cfg = put_in('mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py', tmp_path, dict(type='GCViT', arch='xxtiny'))
    heads = cfg.model.decode_head, cfg.model.auxiliary_head
    assert cfg.model.backbone.out_indices == (2, 3)
    assert [(head.in_index, head.in_channels) for head in heads] == [(1, 512), (0, 256)]
    assert 'a head made for dilated maps predicts coarser' in (tmp_path / 'swapped.py').read_text()


class Plain(BaseModule):
    """A backbone of somebody's own."""
    channels, stride = 24, 8

    def __init__(self, out_indices=(0, 1), init_cfg=None):
        super().__init__(init_cfg)
        self.out_indices = out_indices
        self.convs = nn.ModuleList([nn.Conv2d(3, 24, 3, 8, 1), nn.Conv2d(24, 48, 3, 2, 1)])
        self.feature_info = [dict(channels=self.channels, stride=self.stride), dict(channels=48, stride=16)]

    def forward(self, x):
        maps = [x := conv(x) for conv in self.convs]
        return tuple(maps[index] for index in self.out_indices)


class Liar(Plain):
    stride = 4


def test_any_registered_backbone(tmp_path):
    for kind in (Plain, Liar):
        MODELS.register_module(module=kind, force=True)
    done, cfg = put_in('mmdet::ssd/ssd300_coco.py', tmp_path, dict(type='Plain'))
    assert (done.seen.widths, done.seen.strides, cfg.model.neck['in_channels']) == ([24, 48], [8, 16], (24, 48))
    with pytest.raises(ModelError, match=re.escape(
            'feature_info of Liar says (channels, stride) [(24, 4), (48, 16)], but a dry run [(24, 8), (48, 16)]')):
        swap('mmdet::ssd/ssd300_coco.py', dict(type='Liar'), folder=str(tmp_path))
    with pytest.raises(ModelError, match='^mmdet.ResNet has no feature_info'):
        swap('mmdet::ssd/ssd300_coco.py', dict(type='mmdet.ResNet', depth=18), folder=str(tmp_path))


@pytest.mark.parametrize(('words', 'message'), [
    (['mmdet::nowhere.py', '--backbone', 'SimViT:tiny'], 'error: mmdet has no config nowhere.py'),
    (['mmdet::ssd/ssd300_coco.py', '--backbone', 'SimViT:tinny'], "error: SimViT cannot be built: .*has no arch 'tinny'"),
    (['mmdet::_base_/schedules/schedule_1x.py', '--backbone', 'SimViT:tiny'], 'error: .* has no model; name the config')])
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(words)
    assert not list(tmp_path.iterdir())


LAZY = '''
from mmdet.models import FPN, DetDataPreprocessor, ResNet, RetinaHead, RetinaNet
model = dict(
    type=RetinaNet, data_preprocessor=dict(type=DetDataPreprocessor), backbone=dict(type=ResNet, depth=18, num_stages=4),
    neck=dict(type=FPN, in_channels=[64, 128, 256, 512], out_channels=32, num_outs=5),
    bbox_head=dict(type=RetinaHead, num_classes=3, in_channels=32, feat_channels=32,
                   anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[4, 8, 16, 32, 64])))
'''


def test_the_text_of_a_config_in_pure_python(tmp_path):
    (tmp_path / 'base.py').write_text(LAZY)
    (tmp_path / 'lazy.py').write_text('from mmengine.config import read_base\nwith read_base():\n    from .base import *\n')
    with pytest.raises(ConfigError, match='a config in pure Python, .*swap its text, which this writes: python -c ') as error:
        swap(str(tmp_path / 'lazy.py'), dict(type='SimViT', arch='micro'), folder=str(tmp_path))
    exec(re.search('python -c "(.*)"', str(error.value))[1], {})
    done, cfg = put_in(str(tmp_path / 'lazy_text.py'), tmp_path, dict(type='SimViT', arch='micro'))
    assert (done.seen.strides, cfg.model.neck['in_channels']) == ([4, 8, 16, 32], [32, 64, 160, 256])


def test_the_dry_run_sees_strides_that_are_decoded_wrong():
    """Four maps of strides 4 to 32 for three priors of 8 to 32: widths fit, and each map would be decoded as the next one's."""
    folder = Path(find_spec('mmdet').origin).parent / '.mim/configs'
    cfg = Config.fromfile(folder / 'yolox/yolox_tiny_8xb8-300e_coco.py')
    cfg.model.backbone = dict(type='SimViT', arch='micro')
    cfg.model.neck.in_channels = [32, 64, 160, 256]
    with pytest.raises(ModelError, match=r'bbox_head has the strides \[8, 16, 32\], but gets 4 maps, of strides .*'
                       r'model = dict\(backbone=dict\(out_indices=\(1, 2, 3\)\), neck=dict\(in_channels=\[64, 160, 256\]\)\)'):
        build_model(cfg)
    cfg = Config.fromfile(folder / 'faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py')
    cfg.model.backbone = dict(type='SimViT', arch='micro', out_indices=(3, ))
    cfg.model.rpn_head.in_channels = cfg.model.roi_head.bbox_head.in_channels = 256
    cfg.model.roi_head.bbox_roi_extractor.out_channels = 256
    with pytest.raises(ModelError, match=r'rpn_head takes its maps for ones of strides \[16\], but they are \[32\].*'
                       r'strides=\[32\].*featmap_strides=\[32\]'):
        build_model(cfg)
    assert torch.is_grad_enabled()
