"""Layer-wise learning rate decay on the models of the three libraries."""
import importlib
from collections import Counter

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import CosineAnnealingLR, LinearLR, build_optim_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from torch import nn

from mmsimvit.engine import LayerDecayOptimWrapperConstructor, describe_param_groups
from tests.conftest import ROOT

MICRO = dict(type='SimViT', arch='micro')
MODEL_CFGS = {
    'mmdet': Config.fromfile(ROOT / 'configs/maskrcnn_simvit_micro_shapes.py').model,
    'mmseg': dict(
        type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor'), backbone=MICRO,
        decode_head=dict(type='UPerHead', in_channels=[32, 64, 160, 256], in_index=[0, 1, 2, 3], channels=16, num_classes=7,
                         norm_cfg=dict(type='BN'), loss_decode=dict(type='CrossEntropyLoss'))),
    'mmpretrain': dict(
        type='ImageClassifier', backbone=dict(MICRO, out_indices=(3, )), neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=6, in_channels=256)),
}
# SimViT-micro has 2 + 3 + 3 + 2 blocks, hence 12 layers: the first patch embedding is 0, the heads are 11.
LAYERS = {
    'backbone.stages.0.patch_embed.proj.weight': 0,
    'backbone.stages.0.patch_embed.norm.bias': 0,
    'backbone.stages.0.blocks.0.attn.q.weight': 1,
    'backbone.stages.0.blocks.1.ffn.dwconv.bias': 2,
    'backbone.stages.0.norm.weight': 2,
    'backbone.stages.1.patch_embed.proj.bias': 2,
    'backbone.stages.1.blocks.2.norm1.weight': 5,
    'backbone.stages.2.patch_embed.norm.weight': 5,
    'backbone.stages.2.blocks.0.attn.kv.weight': 6,
    'backbone.stages.3.patch_embed.proj.weight': 8,
    'backbone.stages.3.blocks.0.ffn.fc1.weight': 9,
    'backbone.stages.3.blocks.1.ffn.fc2.bias': 10,
    'backbone.stages.3.norm.weight': 10,
}
HEADS = {
    'mmdet': ('neck.lateral_convs.0.conv.weight', 'rpn_head.rpn_cls.weight', 'roi_head.mask_head.conv_logits.bias'),
    'mmseg': ('decode_head.conv_seg.weight', 'decode_head.bottleneck.bn.weight'),
    'mmpretrain': ('head.fc.weight', 'head.fc.bias'),
}


def build(scope, **changes):
    """A model without memory for its numbers."""
    cfg = Config(dict(model=MODEL_CFGS[scope])).model.copy()
    cfg.backbone = {**cfg.backbone, **changes}
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'):
        return MODELS.build(cfg)


@pytest.fixture(scope='module')
def models():
    return {scope: build(scope) for scope in MODEL_CFGS}


def construct(model, scope='mmengine', lr=0.1, weight_decay=0.05, **paramwise_cfg):
    optimizer = dict(type='AdamW', lr=lr, weight_decay=weight_decay)
    with DefaultScope.overwrite_default_scope(scope):
        return build_optim_wrapper(model, dict(optimizer=optimizer, constructor='LayerDecayOptimWrapperConstructor',
                                               paramwise_cfg=paramwise_cfg))


def options(model, optim_wrapper):
    """Name of each parameter -> its group."""
    groups = {id(p): group for group in optim_wrapper.optimizer.param_groups for p in group['params']}
    return {name: groups[id(p)] for name, p in model.named_parameters() if id(p) in groups}


@pytest.mark.parametrize('scope', MODEL_CFGS)
def test_rates_are_those_computed_by_hand(scope, models):
    found = options(models[scope], construct(models[scope], scope, layer_decay_rate=0.5))
    assert {name: found[name]['lr'] for name in LAYERS} == {name: 0.1 * 0.5**(11 - depth) for name, depth in LAYERS.items()}
    assert {name: found[name]['lr'] for name in HEADS[scope]} == dict.fromkeys(HEADS[scope], 0.1)
    assert {name for name, group in found.items() if group['weight_decay'] == 0} == {
        name for name in found if name.startswith('backbone') and 'norm' in name}
    assert {group['weight_decay'] for group in found.values()} == {0, 0.05}
    assert found['backbone.stages.3.norm.weight']['layers'] == '10'


@pytest.mark.parametrize('scope', MODEL_CFGS)
def test_each_parameter_is_in_one_group_and_groups_are_few(scope, models):
    groups = construct(models[scope], scope, layer_decay_rate=0.5).optimizer.param_groups
    counts = Counter(id(p) for group in groups for p in group['params'])
    assert set(counts.values()) == {1}
    assert set(counts) == {id(p) for p in models[scope].parameters()}
    # 11 depths with and without weight decay, and what comes after the backbone.
    assert len(groups) == 23
    assert len({(group['lr'], group['weight_decay']) for group in groups}) == 23


def test_a_rate_of_1_leaves_the_default_rates(models):
    groups = construct(models['mmdet'], layer_decay_rate=1).optimizer.param_groups
    assert [(group['lr'], group['weight_decay'], group['layers']) for group in groups] == [
        (0.1, 0.05, '0-11'), (0.1, 0., '0-10')]


def test_paramwise_options_keep_their_meaning(models):
    """norm_decay_mult also reaches the head's norms, custom_keys multiply the decayed rate and may ask for weight decay."""
    found = options(models['mmseg'], construct(
        models['mmseg'], layer_decay_rate=0.5, norm_decay_mult=0., bias_decay_mult=0.25, bias_lr_mult=2.,
        custom_keys={'stages.2': dict(lr_mult=0.1), 'stages.3.norm': dict(decay_mult=0.5, betas=(0.8, 0.9))}))
    assert found['decode_head.bottleneck.bn.weight']['weight_decay'] == 0
    fc2 = found['backbone.stages.3.blocks.1.ffn.fc2.bias']
    assert (fc2['lr'], fc2['weight_decay']) == (0.2 * 0.5, 0.0125)
    kv = found['backbone.stages.2.blocks.0.attn.kv.weight']
    assert kv['lr'] == pytest.approx(0.01 * 0.5**5, rel=1e-12)
    assert kv['weight_decay'] == 0.05
    assert found['backbone.stages.2.norm.weight']['weight_decay'] == 0  # its key says nothing of weight decay
    norm = found['backbone.stages.3.norm.weight']
    assert (norm['lr'], norm['weight_decay'], norm['betas']) == (0.05, 0.025, (0.8, 0.9))


@pytest.mark.parametrize(('frozen_stages', 'first'), [(0, 1), (2, 5)])
def test_frozen_parameters_are_in_no_group(frozen_stages, first):
    model = build('mmpretrain', frozen_stages=frozen_stages)
    wrapper = construct(model, 'mmpretrain', layer_decay_rate=1.)
    assert set(options(model, wrapper)) == {name for name, p in model.named_parameters() if p.requires_grad}
    # Stage 3's patch embedding counts with the last block of the second stage.
    assert {group['layers'] for group in wrapper.optimizer.param_groups} == {f'{first}-10', f'{first}-11'}


def test_mmpretrains_backbones_in_a_detector():
    """Swin-T has 2 + 2 + 6 + 2 blocks, hence 14 layers; it names no parameter without weight decay."""
    cfg = MODEL_CFGS['mmdet'].copy()
    cfg.backbone = dict(type='mmpretrain.SwinTransformer', arch='tiny', out_indices=(0, 1, 2, 3))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
    wrapper = construct(model, 'mmdet', layer_decay_rate=0.5)
    found = options(model, wrapper)
    depths = {
        'backbone.patch_embed.projection.weight': 0,
        'backbone.stages.0.blocks.1.attn.w_msa.qkv.weight': 2,
        'backbone.stages.1.downsample.reduction.weight': 4,
        'backbone.stages.2.blocks.5.ffn.layers.1.weight': 10,
        'backbone.stages.3.blocks.1.norm2.bias': 12,
        'backbone.norm3.weight': 13,
        'neck.fpn_convs.0.conv.weight': 13,
    }
    assert {name: found[name]['lr'] for name in depths} == {name: 0.1 * 0.5**(13 - depth) for name, depth in depths.items()}
    assert len(wrapper.optimizer.param_groups) == 14


def test_backbones_inside_other_modules():
    """A student and its teacher; MMPreTrain's ResNet-50 of 8 layers orders names that begin with ``backbone.`` alone."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = nn.ModuleDict({name: nn.ModuleDict(dict(backbone=MODELS.build(dict(type='ResNet', depth=50)),
                                                        head=nn.Linear(2, 2))) for name in ('student', 'teacher')})
    model.teacher.requires_grad_(False)
    found = options(model, construct(model, layer_decay_rate=0.5))
    assert all(name.startswith('student') for name in found)
    assert found['student.backbone.conv1.weight']['lr'] == 0.1 * 0.5**7
    assert found['student.backbone.layer4.0.conv1.weight']['lr'] == 0.1 * 0.5
    assert found['student.head.weight']['lr'] == 0.1


def test_a_wrapped_model_is_unwrapped(models):
    wrapped = nn.Module()
    wrapped.module = models['mmpretrain']
    plain, found = (construct(model, layer_decay_rate=0.5).optimizer.param_groups for model in (models['mmpretrain'], wrapped))
    assert [{**group, 'params': list(map(id, group['params']))} for group in plain] == [
        {**group, 'params': list(map(id, group['params']))} for group in found]


def test_schedulers_keep_the_ratios(models):
    wrapper = construct(models['mmpretrain'], layer_decay_rate=0.5)
    schedulers = [LinearLR(wrapper, start_factor=0.1, begin=0, end=5, by_epoch=False),
                  CosineAnnealingLR(wrapper, eta_min_ratio=0.01, begin=5, T_max=10, by_epoch=False)]
    initial = [group['initial_lr'] for group in wrapper.optimizer.param_groups]
    assert min(initial) == 0.1 * 0.5**11 and max(initial) == 0.1
    factors = []
    for _ in range(15):
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        factors.append(wrapper.get_lr()['base_lr'][0] / 0.1)
        rates = [group['lr'] for group in wrapper.optimizer.param_groups]
        assert rates == pytest.approx([factors[-1] * rate for rate in initial], rel=1e-9)
    assert factors[3] == pytest.approx(1)
    assert factors[-1] == pytest.approx(0.01)


def test_the_table_is_logged_once_instead_of_a_line_for_each_parameter(monkeypatch):
    model, messages = build('mmpretrain', frozen_stages=1), []
    MMLogger.get_instance('test_layer_decay')  # the current one from now on, of the level INFO
    monkeypatch.setattr(MMLogger, 'callHandlers', lambda self, record: messages.append(record.getMessage()))
    wrapper = construct(model, layer_decay_rate=0.5, bias_lr_mult=3.)
    table = describe_param_groups(wrapper)
    assert sum(table in message for message in messages) == 1
    assert not [message for message in messages if 'paramwise_options' in message or 'is skipped' in message]
    frozen = sum(p.numel() for p in model.backbone.stages[0].parameters())
    number = len(list(model.backbone.stages[0].parameters()))
    assert f'frozen, in no group: {number} tensors, {frozen:,} parameters' in messages[-1]
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ['depth', 'lr', 'weight', 'decay', 'tensors', 'parameters']
    assert rows[-2] == ['11', '0.1', '0.05', '1', '1,536'] and rows[-1] == ['11', '0.3', '0.05', '1', '6']  # the classifier
    assert sum(int(row[-1].replace(',', '')) for row in rows[1:]) + frozen == sum(p.numel() for p in model.parameters())
    assert MMLogger.get_current_instance().filters == []


def test_groups_of_other_constructors_are_described():
    wrapper = build_optim_wrapper(nn.Linear(3, 2), dict(optimizer=dict(type='Rprop', lr=0.1)))
    assert describe_param_groups(wrapper).splitlines()[1].split() == ['-', '0.1', '-', '2', '8']


@pytest.mark.parametrize('rate', [0, -0.5, 1.01, float('nan'), '0.8', None])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=r'layer_decay_rate must be a number above 0 and at most 1.* got'):
        LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=0.1)), dict(layer_decay_rate=rate))


def test_a_missing_learning_rate_is_refused():
    with pytest.raises(ValueError, match=r'optim_wrapper.optimizer.lr, which is not set'):
        LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='AdamW')), dict(layer_decay_rate=0.8))


def test_models_whose_layers_have_no_order_are_refused():
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=MODELS.build(dict(type='ResNet', depth=18))))
    with pytest.raises(ValueError, match=r'mmdet.models.backbones.resnet.ResNet has no get_layer_depth.*mmpretrain.SwinTransf'):
        construct(model, layer_decay_rate=0.8)
    with pytest.raises(ValueError, match=r'Linear has no module called backbone'):
        construct(nn.Linear(2, 2), layer_decay_rate=0.8)
    for any_model in (model, nn.Linear(2, 2)):  # where all rates are equal, no order is needed
        assert {found['lr'] for found in options(any_model, construct(any_model, layer_decay_rate=1.)).values()} == {0.1}


def test_shared_parameters_are_refused_or_trained_once():
    model = nn.ModuleDict(dict(backbone=MODELS.build(MICRO), head=nn.ModuleDict()))
    model.head['again'] = model.backbone.stages[3].norm
    with pytest.raises(ValueError, match=r'backbone.stages.3.norm.weight is found twice in ModuleDict.*bypass_duplicate=True'):
        construct(model, layer_decay_rate=0.5)
    found = options(model, construct(model, layer_decay_rate=0.5, bypass_duplicate=True))
    assert found['backbone.stages.3.norm.weight']['lr'] == 0.05


@pytest.mark.parametrize('scope', MODEL_CFGS)
def test_the_name_is_ours_in_every_scope(scope):
    registry = importlib.import_module(f'{scope}.registry').OPTIM_WRAPPER_CONSTRUCTORS
    registry.import_from_location()
    assert 'LearningRateDecayOptim' in ''.join(registry.module_dict)  # each has a constructor of its own
    assert 'LayerDecayOptimWrapperConstructor' not in registry.module_dict
    with DefaultScope.overwrite_default_scope(scope):
        built = OPTIM_WRAPPER_CONSTRUCTORS.build(dict(
            type='LayerDecayOptimWrapperConstructor', optim_wrapper_cfg=dict(optimizer=dict(type='SGD', lr=0.1)),
            paramwise_cfg=dict(layer_decay_rate=0.8)))
    assert type(built) is LayerDecayOptimWrapperConstructor
