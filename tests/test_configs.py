"""Every config in configs/ trains and evaluates: real heads, losses and pipelines, on small generated images."""
import gc
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from mmsimvit.backbones import Backbone
from mmsimvit.datasets import CLASSES
from mmsimvit.engine import build_runner
from mmsimvit.train import main as train
from tests.conftest import ROOT, SETTINGS, load_tool

model_zoo = load_tool(ROOT / 'tools/model_zoo.py')
CONFIGS = [path.relative_to(ROOT / 'configs').as_posix() for path in model_zoo.config_files()]
SPLITS = dict(train='training', val='validation', test='validation')
ARCHS = {name: kind.arch_zoo for name, kind in MODELS.module_dict.items()
         if isinstance(kind, type) and issubclass(kind, Backbone) and kind.arch_zoo}
LOSSES = {
    'MaskRCNN': {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'},
    'CascadeRCNN': {'loss_rpn_cls', 'loss_rpn_bbox', 's2.loss_cls', 's2.loss_bbox', 's2.loss_mask'},
    'SparseRCNN': {'s5.loss_cls', 's5.loss_bbox', 's5.loss_iou'},
    'RetinaNet': {'loss_cls', 'loss_bbox'},
    'ATSS': {'loss_cls', 'loss_bbox', 'loss_centerness'},
    'GFL': {'loss_cls', 'loss_bbox', 'loss_dfl'},
    'EncoderDecoder': {'decode.loss_ce', 'decode.acc_seg'},
    'ImageClassifier': {'loss'},
}


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
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=1, val_interval=2)
    cfg.default_hooks.checkpoint = None


def heads(model):
    for head in (model.get('bbox_head'), *map(model.get('roi_head', {}).get, ('bbox_head', 'mask_head'))):
        yield from head if isinstance(head, list) else [head] if head else []


def num_classes(model):
    return next(head.num_classes for head in heads(model))


def shrink(pipeline):
    for step in pipeline:
        for branch in step.get('transforms', ()):
            shrink(branch)
        if step.type in ('RandomResizedCrop', 'ResizeEdge'):
            step.scale = 64
        for key, value in dict(scale=(64, 64), scales=[(64, 64), (96, 96)], crop_size=(64, 64)).items():
            if key in step and step.type not in ('RandomResizedCrop', 'ResizeEdge'):
                step[key] = value[0] if step.type == 'CenterCrop' else value


def shrink_model(model):
    """Heads as they are, on fewer regions, for the generated classes."""
    model.backbone.update(init_cfg=None)
    if model.backbone.type in ARCHS:
        # More blocks of a stage show nothing that two do not.
        depths = model.backbone.get('depths', ARCHS[model.backbone.type][model.backbone.arch]['depths'])
        model.backbone.depths = tuple(min(depth, 2) for depth in depths)
    if 'drop_path_rate' in model.backbone or model.backbone.type in ARCHS:
        model.backbone.drop_path_rate = 0.  # a block that is dropped is not trained
    if model.data_preprocessor.get('size'):
        model.data_preprocessor.size = (64, 64)
    for head in heads(model):
        head.num_classes = min(head.num_classes, len(CLASSES))
    for head in (model.get('decode_head'), model.get('auxiliary_head')):
        if head:
            head.num_classes = max(head.num_classes, len(CLASSES) + 1)
    if model.type == 'ImageClassifier':
        model.head.num_classes = max(model.head.num_classes, len(CLASSES))
    if model.type == 'SparseRCNN':
        model.rpn_head.num_proposals = model.test_cfg.rcnn.max_per_img = 20
    if 'rpn_proposal' in (model.get('train_cfg') or {}):
        model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=8)
        model.test_cfg.rpn.update(nms_pre=100, max_per_img=8)
        model.test_cfg.rcnn.max_per_img = 8
        regions = model.train_cfg.rcnn
        for part in regions if isinstance(regions, list) else [regions]:
            part.sampler.num = 8


class Watch(Hook):
    """What one iteration gives and changes, and the scores of the evaluation after it."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses = {name: value.item() for name, value in outputs.items()}
        self.unchanged = [name for name, p in runner.model.named_parameters() if torch.equal(p, self.before[name])]

    def after_val_epoch(self, runner, metrics=None):
        self.scores = metrics


@pytest.fixture
def collected():
    """Frees what was trained: runners and hooks hold each other, and 90 of them would fill 20 GB."""
    yield
    gc.collect()


@pytest.mark.usefixtures('collected')
@pytest.mark.parametrize('name', CONFIGS)
def test_trains_and_evaluates(name, workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace)
    cfg = Config.fromfile(ROOT / 'configs' / name)
    object.__setattr__(cfg, '_format_python_code', False)  # which takes about as long as the training
    assert cfg.auto_scale_lr.base_batch_size > 0 and not cfg.auto_scale_lr.enable
    assert cfg.test_dataloader == cfg.val_dataloader and cfg.test_evaluator == cfg.val_evaluator
    on_generated_images(cfg)
    cfg.update(work_dir=str(tmp_path), experiment_name=name.replace('/', '_'), randomness=dict(seed=0), log_level='WARNING')
    runner, watch = build_runner(cfg), Watch()
    runner.register_hook(watch)
    runner.train()
    assert LOSSES[cfg.model.type] <= set(watch.losses)
    assert all(map(math.isfinite, watch.losses.values())) and watch.losses['loss'] > 0
    trained = set()
    if cfg.model.backbone.type in ARCHS:  # ResNet begins with branches that are zero
        trained.add('backbone')
    if cfg.model.type not in ('CascadeRCNN', 'SparseRCNN'):  # on so small images, these have regions of some levels alone
        trained.add('neck')
    assert [name for name in watch.unchanged if name.split('.')[0] in trained] == []
    assert all(0 <= value <= 100 or value == -1 for value in watch.scores.values())
    if cfg.val_evaluator.type != 'CocoMetric':  # which gives nothing where nothing was found
        assert watch.scores


@pytest.mark.parametrize('name', [name for name in CONFIGS if not name.startswith('comparison')])
def test_neck_and_head_take_the_channels_that_the_backbone_gives(name):
    model = Config.fromfile(ROOT / 'configs' / name).model
    with torch.device('meta'):
        channels = MODELS.build({**model.backbone, 'init_cfg': None}).out_channels
    if model.type == 'ImageClassifier':
        assert model.head.in_channels == channels[-1]
    elif model.get('neck'):
        assert tuple(model.neck.in_channels) == channels
    else:
        assert tuple(model.decode_head.in_channels) == channels
        assert model.auxiliary_head.in_channels == channels[model.auxiliary_head.in_index]


def recipe(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    optimizer = cfg.optim_wrapper.optimizer
    length = cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters
    return optimizer.type, optimizer.lr, optimizer.weight_decay, length, cfg.auto_scale_lr.base_batch_size


@pytest.mark.parametrize(('name', 'expected'), [
    ('maskrcnn_simvit_t_coco.py', ('AdamW', 2e-4, 1e-4, 12, 16)),
    ('retinanet_simvit_micro_coco.py', ('AdamW', 1e-4, 1e-4, 12, 16)),
    ('retinanet_simvit_s_coco.py', ('AdamW', 1e-4, 1e-4, 12, 16)),
    ('maskrcnn_simvit_s_coco_3x.py', ('AdamW', 1e-4, 0.05, 36, 16)),
    ('cascadercnn_simvit_s_coco_3x.py', ('AdamW', 1e-4, 0.05, 36, 16)),
    ('sparsercnn_simvit_s_coco_3x.py', ('AdamW', 2.5e-5, 1e-4, 36, 16)),
    ('upernet_simvit_l_ade20k.py', ('AdamW', 1e-4, 1e-4, 160000, 16)),
    ('semfpn_simvit_m_ade20k.py', ('AdamW', 1e-4, 1e-4, 80000, 16)),
    ('simvit_h_imagenet.py', ('AdamW', 5e-4 * 1024 / 512, 0.05, 300, 1024)),
    ('lit/maskrcnn_lit_s_coco.py', ('AdamW', 2e-4, 1e-4, 12, 16)),
    ('lit/retinanet_lit_ti_coco.py', ('AdamW', 1e-4, 1e-4, 12, 16)),
    ('lit/semfpn_lit_s_ade20k.py', ('AdamW', 1e-4, 1e-4, 80000, 16)),
    ('lit/lit_b_imagenet.py', ('AdamW', 1e-3, 0.05, 300, 1024)),
    ('gcvit/maskrcnn_gcvit_t_coco_3x.py', ('AdamW', 1e-4, 0.05, 36, 16)),
    ('gcvit/cascadercnn_gcvit_b_coco_3x.py', ('AdamW', 1e-4, 0.05, 36, 16)),
    ('gcvit/gcvit_s_imagenet.py', ('AdamW', 5e-3, 0.05, 310, 4096)),
    ('dwnet/cascadercnn_dwnet_dynamic_b_coco_3x.py', ('AdamW', 1e-4, 0.05, 36, 16)),
    ('dwnet/upernet_dwnet_dynamic_t_ade20k.py', ('AdamW', 6e-5, 0.01, 160000, 16)),
    ('dwnet/dwnet_b_imagenet.py', ('AdamW', 1e-3, 0.05, 300, 1024)),
])
def test_recipes_are_the_intended_ones(name, expected):
    assert recipe(name) == expected


def test_schedules_are_the_published_ones():
    """The rates after warm-up, and the steps."""
    one, three, ade20k, imagenet = (Config.fromfile(ROOT / 'configs' / name).param_scheduler for name in (
        'maskrcnn_simvit_t_coco.py', 'atss_simvit_s_coco_3x.py', 'upernet_simvit_t_ade20k.py', 'simvit_t_imagenet.py'))
    assert (one[0].start_factor, one[0].end, one[1].milestones) == (0.001, 500, [8, 11])
    assert three[1].milestones == [27, 33]
    assert (ade20k[0].type, ade20k[0].power, ade20k[0].end) == ('PolyLR', 0.9, 160000)
    assert (imagenet[0].start_factor * 1e-3, imagenet[0].end, imagenet[1].eta_min, imagenet[1].end) == (1e-6, 5, 1e-5, 300)


def test_schedules_of_siblings_are_the_published_ones():
    lit, lit_s, gcvit, detector, dwnet = (Config.fromfile(ROOT / 'configs' / name).param_scheduler for name in (
        'lit/semfpn_lit_ti_ade20k.py', 'lit/lit_s_imagenet.py', 'gcvit/gcvit_t_imagenet.py',
        'gcvit/cascadercnn_gcvit_s_coco_3x.py', 'dwnet/upernet_dwnet_b_ade20k.py'))
    assert (lit[0].power, lit[0].eta_min, lit[0].end) == (0.9, 1e-6, 80000)
    assert (lit_s[0].start_factor * 1e-3, lit_s[0].end, lit_s[1].eta_min, lit_s[1].end) == (5e-7, 20, 5e-6, 300)
    assert (round(gcvit[0].start_factor * 5e-3, 12), gcvit[0].end, gcvit[1].eta_min, gcvit[1].end) == (1e-6, 20, 5e-6, 300)
    assert (detector[0].start_factor, detector[0].end, detector[1].milestones) == (0.001, 2500, [27, 33])
    assert (dwnet[0].start_factor, dwnet[0].end, dwnet[1].power, dwnet[1].eta_min) == (1e-6, 1500, 1.0, 0.)
    assert dwnet[1].end == 160000


def decayed(name):
    """Of the backbone's parameters, the kinds that are trained with weight decay, and those that learn at another rate."""
    cfg = Config.fromfile(ROOT / 'configs' / name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        backbone = MODELS.build({**cfg.model.backbone, 'init_cfg': None})
        optimizer = build_optim_wrapper(backbone, cfg.optim_wrapper).optimizer
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    kinds = {key: {next((kind for kind in ('norm', 'bn', 'table', 'gamma') if kind in name.split('.', 3)[-1]),
                        'flat' if p.dim() < 2 else 'weight') for name, p in backbone.named_parameters()
                   if holds(groups[id(p)])} for key, holds in dict(
                       decayed=lambda group: group['weight_decay'] > 0,
                       slower=lambda group: group['lr'] < optimizer.defaults['lr']).items()}
    return kinds['decayed'], kinds['slower']


@pytest.mark.parametrize(('name', 'expected'), [
    ('lit/maskrcnn_lit_ti_coco.py', ({'norm', 'flat', 'weight'}, set())),
    ('lit/maskrcnn_lit_s_coco.py', ({'flat', 'weight'}, set())),
    ('lit/lit_s_imagenet.py', ({'weight'}, {'weight'})),
    ('gcvit/maskrcnn_gcvit_t_coco_3x.py', ({'flat', 'weight', 'table'}, set())),
    ('gcvit/cascadercnn_gcvit_s_coco_3x.py', ({'flat', 'weight', 'gamma'}, set())),
    ('gcvit/gcvit_s_imagenet.py', ({'weight', 'table'}, set())),
    ('dwnet/cascadercnn_dwnet_t_coco_3x.py', ({'flat', 'weight', 'bn'}, set())),
    ('dwnet/dwnet_t_imagenet.py', ({'weight'}, set())),
])
def test_weight_decay_is_left_out_where_the_papers_do(name, expected):
    assert decayed(name) == expected


@pytest.mark.parametrize(('name', 'repeated'), [
    ('simvit_t_imagenet.py', True), ('lit/lit_s_imagenet.py', True), ('gcvit/gcvit_b_imagenet.py', False),
    ('dwnet/dwnet_dynamic_t_imagenet.py', False)])
def test_augmentation_is_repeated_where_the_papers_do(name, repeated):
    sampler = Config.fromfile(ROOT / 'configs' / name).train_dataloader.sampler
    assert (sampler.type == 'RepeatAugSampler') == repeated


@pytest.mark.parametrize(('name', 'with_mask'), [
    ('maskrcnn_simvit_s_coco_3x.py', True), ('retinanet_simvit_s_coco_3x.py', False), ('retinanet_simvit_t_coco.py', False)])
def test_masks_are_loaded_where_they_are_trained(name, with_mask):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        steps = [step for step in loader.dataset.pipeline if step.type == 'LoadAnnotations']
        assert [step.get('with_mask', False) for step in steps] == [with_mask]
    assert cfg.test_evaluator.metric == (['bbox', 'segm'] if with_mask else 'bbox')


def test_three_times_schedule_has_no_decay_for_norms_alone():
    cfg = Config.fromfile(ROOT / 'configs/gfl_simvit_s_coco_3x.py')
    assert cfg.optim_wrapper.paramwise_cfg == dict(custom_keys=dict(norm=dict(decay_mult=0.)))


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


@pytest.mark.parametrize('name', ['semfpn_r18_camvid.py', 'retinanet_r18_nuclei.py'])
def test_compared_backbones_train_their_norms(name):
    """MMDetection's ResNet freezes the statistics of its batch norms unless told otherwise, which is for pretrained weights."""
    backbone = MODELS.build(Config.fromfile(ROOT / 'configs/comparison' / name).model.backbone)
    backbone.train()
    assert [module.training for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)] == [True] * 20


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
