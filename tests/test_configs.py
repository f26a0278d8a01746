"""Every config in configs/ says what is stored, and trains and evaluates: real heads, losses and pipelines, on small images."""
import functools
import gc
import importlib.util
import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from mmdet.models.backbones import PyramidVisionTransformer
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope

from mmsimvit.backbones import Backbone
from mmsimvit.datasets import CLASSES
from mmsimvit.engine import build_runner
from mmsimvit.train import main as train
from tests.conftest import ROOT, SETTINGS
from tests.write_config_snapshot import COMMAND, CONFIGS, FILE, describe, find_changes, model_zoo, parse, render

STORED = parse(FILE.read_text(encoding='utf-8'))
SPLITS = dict(train='training', val='validation', test='validation')
ARCHS = {name: kind.arch_zoo for name, kind in MODELS.module_dict.items()
         if isinstance(kind, type) and issubclass(kind, Backbone) and kind.arch_zoo}
CLASSIFIERS = ('DynamicClassifier', 'ImageClassifier', 'MultiResolutionClassifier')
SIZES = (64, 48, 32)  # where there are several resolutions
LOSSES = {
    'MaskRCNN': {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'},
    'CascadeRCNN': {'loss_rpn_cls', 'loss_rpn_bbox', 's{last}.loss_cls', 's{last}.loss_bbox', 's{last}.loss_mask'},
    'SparseRCNN': {'s{last}.loss_cls', 's{last}.loss_bbox', 's{last}.loss_iou'},
    'DeformableDETR': {'loss_cls', 'loss_bbox', 'loss_iou', 'd4.loss_cls', 'd4.loss_bbox', 'd4.loss_iou'},
    'RetinaNet': {'loss_cls', 'loss_bbox'},
    'ATSS': {'loss_cls', 'loss_bbox', 'loss_centerness'},
    'GFL': {'loss_cls', 'loss_bbox', 'loss_dfl'},
    'EncoderDecoder': {'decode.loss_ce', 'decode.acc_seg'},
    'ImageClassifier': {'loss'},
    'MultiResolutionClassifier': {'loss', 'loss_consistency'},
    'DynamicClassifier': {'loss', 'loss_ratio', 'loss_logits', 'loss_features'},
}
SCORES = {
    **dict.fromkeys(('MaskRCNN', 'CascadeRCNN'), ('coco/bbox_mAP', 'coco/segm_mAP')),
    **dict.fromkeys(('SparseRCNN', 'DeformableDETR', 'RetinaNet', 'ATSS', 'GFL'), ('coco/bbox_mAP', )),
    'EncoderDecoder': ('mIoU', 'mAcc', 'aAcc'),
    **dict.fromkeys(CLASSIFIERS, ('accuracy/top1', )),
}


LIBRARIES = model_zoo.load_config(model_zoo.LIBRARIES).backbones


def choose_quick() -> set[str]:
    """Each system's smallest, and one of each kind of detector, segmentor and classifier: on generated images if there is."""
    systems, quick = {name.lower() for name in ARCHS}, {}
    for name in sorted(CONFIGS, key=lambda name: '_shapes' not in name):
        model = Path(name).name.partition('_')[0]  # a classifier's is that of its system
        quick.setdefault('classifier' if model in systems else model, name)
    return {*quick.values(), *(name for name in CONFIGS if name.endswith('_mini_shapes.py'))}


QUICK = choose_quick()


def on_generated_images(cfg):
    """The config with its own dataset types and transforms, but small images, few regions and one iteration."""
    shrink_model(cfg.model)
    for split, folder in SPLITS.items():
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        dataset = loader.dataset.dataset if loader.dataset.type == 'Shapes' else loader.dataset
        dataset.pop('split', None)
        if dataset.type == 'CocoDataset':
            dataset.update(data_root='data/shapes', ann_file=f'annotations/instances_{folder}.json')
            dataset.data_prefix = dict(img=f'images/{folder}')
            dataset.metainfo = dict(classes=CLASSES[:num_classes(cfg.model)])
        elif dataset.type in ('BaseSegDataset', 'ADE20KDataset'):
            dataset.update(data_root='data/shapes', img_suffix='.png')
            dataset.data_prefix = dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}')
            if dataset.get('metainfo'):
                dataset.metainfo = dict(classes=('background', *CLASSES))
        else:
            dataset.update(type='CustomDataset', data_root=f'data/shapes/classification/{folder}')
        shrink(dataset.pipeline)
        dataset.serialize_data = False  # it collects garbage, of all that the process has
        loader.dataset = dict(type='Shapes', root='data/shapes', dataset=dataset, **SETTINGS)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if evaluator.type == 'CocoMetric':
            evaluator.ann_file = 'data/shapes/annotations/instances_validation.json'
    for scheduler in cfg.param_scheduler:
        if scheduler.type == 'LinearLR':
            scheduler.start_factor = 1.  # a warm-up would begin with changes that rounding swallows
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks', []) if hook.type != 'HoldPretrainedHook']
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=1, val_interval=2)
    cfg.default_hooks.checkpoint = None


def heads(model):
    for head in (model.get('bbox_head'), *map(model.get('roi_head', {}).get, ('bbox_head', 'mask_head'))):
        yield from head if isinstance(head, list) else [head] if head else []


def num_classes(model):
    return next(head.num_classes for head in heads(model))


def shrink(pipeline):
    for step in pipeline:
        for index, branch in enumerate(step.get('transforms', ())):
            shrink(branch)
            if step.type == 'MultiView':
                branch[0].scale = SIZES[index]
        if step.type in ('RandomResizedCrop', 'ResizeEdge'):
            step.scale = 64
        for key, value in dict(scale=(64, 64), scales=[(64, 64), (96, 96)], crop_size=(64, 64)).items():
            if key in step and step.type not in ('RandomResizedCrop', 'ResizeEdge'):
                step[key] = value[0] if step.type == 'CenterCrop' else value


def shrink_library(backbone):
    """Two blocks in each stage, or in all of a plain one, by the names that the libraries have for them."""
    sizes = backbone
    if isinstance(backbone.get('arch'), str):
        backbone.arch = MODELS.get(backbone.type).arch_zoo[backbone.arch]
        sizes = backbone.arch
    for key in ('depths', 'num_layers'):
        if key in sizes:
            sizes[key] = [min(depth, 2) for depth in sizes[key]] if isinstance(sizes[key], list) else 2
    if 'downscale_indices' in sizes:  # which are where the stages of MViT begin
        sizes.update(num_layers=8, downscale_indices=[2, 4, 6])


def shrink_model(model):
    """Heads as they are, on fewer regions, for the generated classes."""
    model.backbone.update(init_cfg=None)
    if model.backbone.type in ARCHS:
        # More blocks of a stage show nothing that two do not.
        arch = {**ARCHS[model.backbone.type][model.backbone.arch], **model.backbone}
        if 'depths' in arch:
            model.backbone.depths = tuple(min(depth, 2) for depth in arch['depths'])
        elif 'depth' in arch and arch.get('out_indices', -1) == -1:  # of a plain one; other maps are named by their blocks
            model.backbone.depth = min(arch['depth'], 2)
            for key in ('windows', 'window_sizes'):  # one for each block
                if arch.get(key):
                    model.backbone[key] = tuple(arch[key])[-2:]
        if arch.get('predictors'):
            model.backbone.predictors = (1, )
    else:
        shrink_library(model.backbone)
    if 'drop_path_rate' in model.backbone or model.backbone.type in ARCHS:
        model.backbone.drop_path_rate = 0.  # a block that is dropped is not trained
    if model.data_preprocessor.get('sizes'):
        model.data_preprocessor.sizes = SIZES
    if model.data_preprocessor.get('size'):
        model.data_preprocessor.size = (64, 64)
    if model.data_preprocessor.get('pad_size_divisor', 1) > 64:
        model.data_preprocessor.pad_size_divisor = 64
    for head in heads(model):
        head.num_classes = min(head.num_classes, len(CLASSES))
    for head in (model.get('decode_head'), model.get('auxiliary_head')):
        if head:
            head.num_classes = max(head.num_classes, len(CLASSES) + 1)
    if model.type in CLASSIFIERS:
        model.head.num_classes = max(model.head.num_classes, len(CLASSES))
    if model.type == 'SparseRCNN':
        model.rpn_head.num_proposals = model.test_cfg.rcnn.max_per_img = 20
    if (model.get('train_cfg') or {}).get('rpn'):
        model.train_cfg.rpn.sampler.num = 10000  # all: of a coarse level, which has three, chance might take none
    if 'rpn_proposal' in (model.get('train_cfg') or {}):
        model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=8)
        model.test_cfg.rpn.update(nms_pre=100, max_per_img=8)
        model.test_cfg.rcnn.max_per_img = 8
        regions = model.train_cfg.rcnn
        for part in regions if isinstance(regions, list) else [regions]:
            part.sampler.num = 8


class Watch(Hook):
    """What one iteration gives and changes, and the scores of the evaluation after it."""

    def before_train(self, runner):
        for p in runner.model.backbone.parameters():
            if not p.any():  # what begins at zero hides from gradients what is behind
                torch.nn.init.normal_(p, std=0.02)

        at_rest = {id(p) for group in runner.optim_wrapper.param_groups if group['lr'] == 0 for p in group['params']}
        self.at_rest = [name for name, p in runner.model.named_parameters() if id(p) in at_rest]

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses = {name: value.item() for name, value in outputs.items()}
        self.unchanged = [name for name, p in runner.model.named_parameters() if torch.equal(p, self.before[name])]

    def after_val_epoch(self, runner, metrics=None):
        self.scores = metrics


def save_teacher(cfg, path):
    """A checkpoint of random weights, which a student begins with."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.save(dict(state_dict=MODELS.build({**cfg.model, 'teacher': None}).state_dict()), path)
    return str(path)


@pytest.fixture
def collected():
    """Frees what was trained: runners and hooks hold each other, and 90 of them would fill 20 GB."""
    yield
    gc.collect()


@pytest.mark.usefixtures('collected')
@pytest.mark.parametrize('name', [pytest.param(name, marks=[] if name in QUICK else pytest.mark.full) for name in CONFIGS])
def test_trains_and_evaluates(name, workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace)
    cfg = Config.fromfile(ROOT / 'configs' / name)
    object.__setattr__(cfg, '_format_python_code', False)  # which takes about as long as the training
    on_generated_images(cfg)
    cfg.update(work_dir=str(tmp_path), experiment_name=name.replace('/', '_'), randomness=dict(seed=0), log_level='WARNING')
    if cfg.model.get('teacher'):
        cfg.model.teacher = save_teacher(cfg, tmp_path / 'teacher.pth')
    runner, watch = build_runner(cfg), Watch()
    runner.register_hook(watch)
    runner.train()
    last = cfg.model.get('roi_head', {}).get('num_stages', 1) - 1
    assert {loss.format(last=last) for loss in LOSSES[cfg.model.type]} <= set(watch.losses)
    assert all(map(math.isfinite, watch.losses.values())) and watch.losses['loss'] > 0
    trained = set()
    if cfg.model.backbone.type != 'mmdet.ResNet':  # which begins with branches that are zero
        trained.add('backbone')
    if cfg.model.type not in ('CascadeRCNN', 'SparseRCNN'):  # on so small images, these have regions of some levels alone
        trained.add('neck')
    unread: list[str] = []
    if cfg.model.backbone.get('out_type') == 'cls_token':  # to which ResFormer's last local positions add nothing
        unread = [f'backbone.blocks.{len(runner.model.backbone.blocks) - 1}.attn.local.{kind}' for kind in ('weight', 'bias')]
    if cfg.model.backbone.get('out_type') == 'messengers':  # which have no displacements
        unread = [f'backbone.stages.3.blocks.{len(runner.model.backbone.stages[3].blocks) - 1}.attn.position_bias.table']
    unread += watch.at_rest
    assert [name for name in watch.unchanged if name.split('.')[0] in trained] == unread
    if watch.scores or cfg.val_evaluator.type != 'CocoMetric':  # which gives nothing where nothing was found
        for score in SCORES[cfg.model.type]:
            assert 0 <= watch.scores[score] <= 100


@functools.cache
def run_library(settings):
    """The shapes of the maps that a library's backbone makes of 64 x 64 pixels, with few blocks."""
    backbone = ConfigDict(json.loads(settings))
    shrink_library(backbone)
    with model_zoo.without_numbers(), torch.no_grad():
        return [tuple(out.shape[1:]) for out in MODELS.build(backbone)(torch.rand(2, 3, 64, 64))]


def find_maps(backbone):
    return run_library(json.dumps({**backbone, 'drop_path_rate': 0., 'init_cfg': None}, sort_keys=True))


@pytest.mark.parametrize(('paper', 'variant'), [
    pytest.param(paper, variant, marks=[] if variant == next(iter(rows)) else pytest.mark.full)
    for paper, rows in LIBRARIES.items() for variant in rows])
def test_the_table_says_what_maps_the_libraries_backbones_give(paper, variant):
    row = LIBRARIES[paper][variant]
    strides = (4, 8, 16, 32) if len(row.channels) == 4 else (16, )
    assert model_zoo.size_variants(paper)[variant][1:] == (tuple(row.channels), strides)
    assert find_maps(row.settings) == [(width, 64 // stride, 64 // stride) for width, stride in zip(row.channels, strides)]


@pytest.mark.parametrize('paper', LIBRARIES)
def test_the_table_has_weights_that_the_libraries_link_to(paper):
    folders = dict(Swin='mmdet/swin', PVT='mmdet/pvt', PVTv2='mmdet/pvt', Twins='mmpretrain/twins', MViTv2='mmpretrain/mvit',
                   DeiT='mmpretrain/deit')
    files = {row.settings.init_cfg.checkpoint for row in LIBRARIES[paper].values()}
    assert len(files) == len(LIBRARIES[paper])
    linked = ''.join(path.read_text() for path in library_folder(folders[paper]).iterdir() if path.is_file())
    if paper == 'Swin':  # of which MMDetection has the two smaller
        linked += (library_folder('mmpretrain/swin_transformer') / 'metafile.yml').read_text()
    assert [file for file in files if '/'.join(file.split('/')[-2:]) not in linked] == []


def library_folder(name):
    library, folder = name.split('/')
    return Path(importlib.util.find_spec(library).origin).parent / '.mim/configs' / folder


@pytest.mark.parametrize(('paper', 'variant', 'config'), [
    *(('PVT', variant, f'pvt/retinanet_pvt-{variant}_fpn_1x_coco.py') for variant in 'tsml'),
    *(('PVTv2', variant, f'pvt/retinanet_pvtv2-{variant}_fpn_1x_coco.py') for variant in ('b0', 'b1', 'b2', 'b3', 'b4', 'b5')),
    ('Swin', 't', 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'),
    ('Swin', 's', 'swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py'),
])
def test_the_table_has_the_settings_of_mmdetections_configs(paper, variant, config):
    """Where these say nothing, the argument is the default, also of a class that has no other."""
    row = LIBRARIES[paper][variant]
    theirs = Config.fromfile(library_folder('mmdet/') / config).model
    assert theirs.neck.in_channels == row.channels
    assert row.settings.init_cfg.checkpoint == theirs.backbone.init_cfg.checkpoint
    assert row.settings.type == f'mmdet.{theirs.backbone.type}'
    defaults = inspect.signature(PyramidVisionTransformer).parameters if paper != 'Swin' else {}
    for key in set(row.settings) - {'type', 'init_cfg'}:
        assert list_or(row.settings[key]) == list_or(theirs.backbone.get(key) or defaults[key].default), key


def list_or(value):
    return list(value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.full if name.split('/')[0] in map(str.lower, LIBRARIES) else [])
    for name in CONFIGS])
def test_neck_and_head_take_the_channels_that_the_backbone_gives(name):
    model = model_zoo.load_config(ROOT / 'configs' / name).model
    if model.backbone.type in ARCHS:
        with torch.device('meta'):
            channels = MODELS.build({**model.backbone, 'init_cfg': None}).out_channels
    else:
        channels = tuple(shape[0] for shape in find_maps(model.backbone))
    if model.type in CLASSIFIERS:
        assert model.head.in_channels == channels[-1]
    elif model.get('neck'):
        assert tuple(model.neck.in_channels) == channels
    else:
        assert tuple(model.decode_head.in_channels) == channels
        if model.get('auxiliary_head'):
            assert model.auxiliary_head.in_channels == channels[model.auxiliary_head.in_index]


@pytest.mark.parametrize('name', CONFIGS)
def test_what_a_config_says_is_what_is_stored(name):
    """Papers' recipes, each setting of them: tests/config_snapshot.txt."""
    changes = find_changes(STORED.get(name, {}), describe(model_zoo.load_config(ROOT / 'configs' / name)))
    if changes:
        pytest.fail('\n  '.join([f'configs/{name} differs; if that is meant, {COMMAND} stores it:', *changes]), pytrace=False)


def test_no_config_is_stored_that_is_gone():
    assert list(STORED) == CONFIGS, COMMAND
    assert render(parse(render(STORED))) == FILE.read_text(encoding='utf-8')


@pytest.mark.parametrize(('change', 'line'), [
    (dict(optim_wrapper=dict(optimizer=dict(lr=1e-3))), 'optimizer: OptimWrapper(optimizer=AdamW(lr=0.001,'),
    (dict(param_scheduler=[dict(type='PolyLR', power=0.9)]), 'schedule: PolyLR(power=0.9)\n'),
    (dict(model=dict(backbone=dict(depths=(1, 1, 1, 1)))), 'variant: SimViT (smaller)\n    stored: SimViT small'),
    (dict(optim_wrapper=dict(paramwise_cfg=dict(bias_decay_mult=0.))), 'not decayed: Conv2d.bias, LayerNorm.bias'),
    (dict(sync_bn='torch'), 'also: sync_bn=torch\n    stored: nothing'),
])
def test_a_changed_line_is_named(change, line):
    cfg = Config.fromfile(ROOT / 'configs/gfl_simvit_s_coco_3x.py')
    cfg.merge_from_dict(change)
    assert line in '\n'.join(find_changes(STORED['gfl_simvit_s_coco_3x.py'], describe(cfg)))


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_tests_what_it_validates_and_scales_no_learning_rate_unasked(name):
    cfg = model_zoo.load_config(ROOT / 'configs' / name)
    assert cfg.test_dataloader == cfg.val_dataloader and cfg.test_evaluator == cfg.val_evaluator
    assert cfg.auto_scale_lr.base_batch_size > 0 and not cfg.auto_scale_lr.enable


@pytest.mark.parametrize(('name', 'advice'), [
    ('maskrcnn_simvit_micro_coco.py', 'published weights: https://.*ucasligang/SimViT, which are loaded as they are; '),
    ('upernet_simvit_s_ade20k.py', 'published weights: https://.*ucasligang/SimViT'),
    ('retinanet_simvit_l_coco.py', r'no weights of large were published \(.* has micro, tiny, small\); a checkpoint of an'),
    ('semfpn_simvit_m_ade20k.py', 'no weights of medium were published'),
])
def test_missing_weights_stop_the_training_before_the_data_is_read(name, advice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=rf'error: checkpoint checkpoints/simvit_\w+.pth does not exist; {advice}.*'
                                         r'random weights.*init_cfg=None'):
        train([str(ROOT / 'configs' / name)])


def test_a_checkpoint_of_our_classifier_starts_a_detector_and_a_segmentor(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace)
    cfg = Config.fromfile(ROOT / 'configs/simvit_micro_imagenet.py')
    on_generated_images(cfg)
    cfg.model.backbone.pop('depths')
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=False)
    cfg.update(work_dir=str(tmp_path), experiment_name='pretraining', randomness=dict(seed=0), log_level='WARNING')
    build_runner(cfg).train()
    trained = torch.load(tmp_path / 'iter_1.pth')['state_dict']
    for name in ('retinanet_simvit_micro_coco.py', 'upernet_simvit_micro_ade20k.py'):
        model_cfg = Config.fromfile(ROOT / 'configs' / name).model
        model_cfg.backbone.init_cfg.checkpoint = str(tmp_path / 'iter_1.pth')
        with DefaultScope.overwrite_default_scope('mmdet' if 'retinanet' in name else 'mmseg'):
            model = MODELS.build(model_cfg)
            model.init_weights()
        for key, tensor in model.backbone.state_dict().items():
            torch.testing.assert_close(tensor, trained[f'backbone.{key}'], rtol=0, atol=0)
