"""Counting parameters, FLOPs and activations, against numbers derived by hand."""
import importlib.util
from math import ceil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmsimvit import SimViT
from mmsimvit.analysis.flops import count_complexity
from mmsimvit.errors import ModelError
from mmsimvit.models import find_dicts
from mmsimvit.ops import central_attention
from mmsimvit.ops.inhomogeneous_conv import inhomogeneous_conv
from tests.conftest import ROOT

# The paper's table: widths, depths, ratios of the FFN; and the published GMACs at 224 x 224.
ARCHS = {
    'micro': ((32, 64, 160, 256), (2, 3, 3, 2), (8, 8, 4, 4), '0.65'),
    'tiny': ((64, 128, 320, 512), (2, 4, 3, 2), (8, 8, 4, 4), '2.76'),
    'small': ((64, 128, 320, 512), (3, 6, 13, 3), (8, 8, 4, 4), '6.2'),
    'medium': ((64, 128, 320, 512), (3, 8, 30, 3), (8, 8, 4, 4), '10.85'),
    'large': ((64, 128, 320, 512), (3, 8, 40, 3), (4, 4, 4, 4), '12.1'),
    'huge': ((64, 128, 320, 512), (3, 12, 62, 3), (4, 4, 4, 4), '18.1'),
}
NUM_HEADS, STRIDES = (1, 2, 5, 8), (4, 8, 16, 32)


def derive(arch, height, width):
    """(stage, module) -> parameters, MACs and activations of SimViT, as the paper describes it."""
    found, previous, previous_stride = {}, 3, 1
    for stage, (dims, depth, ratio, heads, stride) in enumerate(zip(*ARCHS[arch][:3], NUM_HEADS, STRIDES)):
        pixels, hidden, patch = ceil(height / stride) * ceil(width / stride), ratio * dims, (stride // previous_stride)**2
        seen = 9 if stage < 3 else pixels  # the window of 3 x 3 pixels; the whole map in the last stage
        # The last number is that of the norm's parameters.
        found[stage, 'patch_embed'] = (
            dims * previous * patch + dims + 2 * dims, pixels * dims * previous * patch, pixels * dims)
        # Query, key, value and output, four layers as wide as the map, and two products.
        found[stage, 'blocks.*.attn'] = (
            depth * 4 * (dims**2 + dims), depth * pixels * (4 * dims**2 + 2 * seen * dims),
            depth * pixels * (4 * dims + heads * seen + dims))
        found[stage, 'blocks.*.ffn'] = (
            depth * (dims * hidden + hidden + 9 * hidden + hidden + hidden * dims + dims),
            depth * pixels * (dims * hidden + 9 * hidden + hidden * dims), depth * pixels * (hidden + hidden + dims))
        found[stage, 'blocks.*.norm1'] = found[stage, 'blocks.*.norm2'] = (depth * 2 * dims, 0, 0)
        found[stage, 'norm'] = (2 * dims, 0, 0)
        previous, previous_stride = dims, stride
    return found


def by_path(parts):
    """(stage, module) -> the numbers of a counted backbone."""
    found, stage = {}, None
    for part in parts:
        if part.level == 2:
            stage = int(part.name.removeprefix('stages.'))
        elif part.level == 3:
            found[stage, part.name] = (part.parameters, part.macs, part.activations)
    return found


def build(config, **model):
    cfg = Config.fromfile(ROOT / 'configs' / config)
    cfg.merge_from_dict(dict(model=model))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('shape', [(224, 224), (800, 1280), (75, 130)])
@pytest.mark.parametrize('arch', ARCHS)
def test_simvit_is_counted_as_derived(arch, shape, monkeypatch):
    monkeypatch.setenv('MMSIMVIT_BACKEND', 'composite')  # which has no operator to count
    with torch.device('meta'):
        model = SimViT(arch)
    found = count_complexity(model, shape)
    expected = derive(arch, *shape)
    assert by_path(found.parts) == expected
    sums = tuple(map(sum, zip(*expected.values())))
    assert (found.total.parameters, found.total.macs, found.total.activations) == sums
    assert found.total.flops == 2 * sums[1]
    if shape == (224, 224):
        published = ARCHS[arch][3]
        decimals = len(published.partition('.')[2])
        assert f'{found.total.macs / 1e9:.{decimals}f}' == published


class Wrapper(nn.Module):
    def __init__(self, looks_at_numbers):
        super().__init__()
        self.backbone, self.looks_at_numbers = SimViT('micro'), looks_at_numbers

    def forward(self, images):
        if self.looks_at_numbers:
            images.sum().item()
        return self.backbone(images)


def test_real_numbers_are_counted_alike():
    """On a CPU the FFN is computed in chunks where nobody counts, and attention by a fused kernel; the count must not depend on
    that."""
    real, meta = (count_complexity(Wrapper(looks), (448, 416)) for looks in (True, False))
    assert real.parts == meta.parts
    assert any('Run on the CPU' in note for note in real.notes)
    assert not any('Run on the CPU' in note for note in meta.notes)


def test_shared_layers_are_counted_each_time_they_run():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.Linear(16, 16)
            self.first, self.second = nn.Sequential(layer), nn.Sequential(layer)

        def forward(self, images):
            return self.second(self.first(images))

    total = count_complexity(Shared(), (5, 16)).total
    assert (total.parameters, total.macs, total.activations) == (16 * 16 + 16, 2 * 3 * 5 * 16 * 16, 2 * 3 * 5 * 16)


def test_two_stage_detectors_are_counted_as_derived():
    """The heads of configs/maskrcnn_simvit_micro_shapes.py, with 40 proposals; masks are predicted for 30 detections."""
    model = build('maskrcnn_simvit_micro_shapes.py', test_cfg=dict(rcnn=dict(max_per_img=30)))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = count_complexity(model, (128, 160), num_proposals=40)
    macs = {part.name: part.macs for part in found.parts if part.level == 1}
    pixels = [128 * 160 // stride**2 for stride in STRIDES]
    assert macs.pop('backbone') == sum(numbers[1] for numbers in derive('micro', 128, 160).values())
    assert macs == {
        'neck': sum(n * 64 * dims + n * 64 * 64 * 9 for n, dims in zip(pixels, ARCHS['micro'][0])),
        'rpn_head': sum(pixels) * (64 * 64 * 9 + 64 * 3 * (1 + 4)),
        'roi_head.bbox_head': 40 * (64 * 7 * 7 * 256 + 256 * 256 + 256 * (6 + 1) + 256 * 4),
        'roi_head.mask_head': 30 * (2 * 14 * 14 * 64 * 64 * 9 + 14 * 14 * 64 * 64 * 4 + 28 * 28 * 64)}
    assert found.notes[0] == 'Regions: 40 for bbox heads, 30 for mask heads.'
    assert any('NMS' in note for note in found.notes)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert {part.name: part.macs for part in count_complexity(model, (128, 160)).parts}['roi_head.bbox_head'] == (
        100 * macs['roi_head.bbox_head'] // 40)  # as its test_cfg says


@pytest.mark.parametrize(('config', 'regions'), [
    ('cascadercnn_simvit_s_coco_3x.py', '1000 for bbox heads in each of 3 stages, 100 for mask heads in each of 3 stages'),
    ('sparsercnn_simvit_s_coco_3x.py', '300 for bbox heads in each of 6 stages')])
def test_cascades_are_counted_without_numbers(config, regions):
    found = count_complexity(build(config), (800, 1280))
    assert found.notes[0] == f'Regions: {regions}.'
    assert not any('Run on the CPU' in note for note in found.notes)


def test_backbones_of_the_libraries():
    """ResNet-50 with its classifier: 25,557,032 parameters and 4.09 GMACs, as known from everywhere."""
    model = build('simvit_t_imagenet.py', backbone=dict(_delete_=True, type='ResNet', depth=50), head=dict(in_channels=2048))
    found = count_complexity(model, (224, 224))
    assert found.total.parameters == 25557032
    assert round(found.total.macs / 1e9, 2) == 4.09


class Refusing(nn.Module):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        raise RuntimeError("Couldn't load custom C++ ops. Compile them anew.\nwhere it was")


def test_the_advice_in_an_error_is_kept():
    """As torchvision gives it, which comes after a full stop."""
    with pytest.raises(ModelError, match=r"Couldn't load custom C\+\+ ops\. Compile them anew\.$"):
        count_complexity(Refusing(), (32, 32))


@pytest.mark.parametrize('joint', [False, True])
def test_central_attention_is_counted_in_training(joint):
    """Two products of whole windows forwards, five backwards, as torch counts those of its own attention."""
    with torch.device('meta'):
        query, *others = (torch.rand(2, 5, 6, 16 * width).requires_grad_() for width in ((1, 2) if joint else (1, 1, 1)))
        key, value = others if len(others) == 2 else (others[0], None)
        with FlopCounterMode(display=False) as counter:
            central_attention(query, key, value, num_heads=2, kernel_size=5).sum().backward()
    product = 2 * (2 * 5 * 6) * 16 * 25
    assert {str(name): number for name, number in counter.get_flop_counts()['Global'].items()} == {
        'mmsimvit.neighborhood_attention': 2 * product, 'mmsimvit.neighborhood_attention_backward': 5 * product}


def test_inhomogeneous_convolution_is_counted_in_training():
    with torch.device('meta'):
        x, kernels = torch.rand(2, 12, 5, 6).requires_grad_(), torch.rand(2, 3 * 9, 5, 6).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            inhomogeneous_conv(x, kernels, 4).sum().backward()
    product = 2 * (2 * 12 * 5 * 6) * 9
    assert {str(name): number for name, number in counter.get_flop_counts()['Global'].items()} == {
        'mmsimvit.inhomogeneous_conv': product, 'mmsimvit.inhomogeneous_conv_backward': 2 * product}


def test_deformable_convolutions_of_mmcv_are_counted():
    """As convolutions, if mmsimvit's operators are in use; their sampling is not counted."""
    pytest.importorskip('mmcv')
    from mmcv.ops import DeformConv2d, MultiScaleDeformableAttention

    class Deformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = DeformConv2d(3, 8, 3, padding=1)
            self.attention = MultiScaleDeformableAttention(embed_dims=8, num_heads=2, num_levels=1, num_points=4)

        def forward(self, image):
            maps = self.conv(image, image.new_zeros(1, 18, 10, 12))
            tokens = maps.flatten(2).transpose(1, 2).transpose(0, 1)
            return self.attention(tokens, value=tokens, reference_points=tokens.new_full((1, 120, 1, 2), 0.5),
                                  spatial_shapes=torch.tensor([[10, 12]]), level_start_index=torch.tensor([0]))

    found = count_complexity(Deformed(), (10, 12))
    projections = 8 * 8 + 8 * 2 * 4 * 2 + 8 * 2 * 4 + 8 * 8  # values, places, weights, output
    assert found.total.macs == 120 * (8 * 3 * 9 + projections)
    assert "Not counted: MMCV's operators in MultiScaleDeformableAttention." in found.notes


def test_what_runs_beside_the_children_is_in_a_line_of_its_own():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = SimViT('micro')
            self.weight = nn.Parameter(torch.ones(256, 10))

        def forward(self, images):
            return self.backbone(images)[-1].mean((2, 3)) @ self.weight

    found = count_complexity(Product(), (64, 64))
    assert [tuple(part[2:]) for part in found.parts if part.name == 'other'] == [(2560, 2560, 10)]
    assert found.total.macs == found.parts[1].macs + 2560


def build_stock(path, **changes):
    """A stock detector, with narrow heads of few classes, and a backbone without weights of its own."""
    cfg = Config.fromfile(Path(importlib.util.find_spec('mmdet').origin).parent / '.mim/configs' / path)
    cfg.merge_from_dict(dict(model=changes))
    for part in find_dicts(cfg.model):
        if isinstance(part.get('init_cfg'), dict) and part.init_cfg.get('type') == 'Pretrained':
            part.init_cfg = None
    importlib.import_module('mmdet.models')
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg.model)


def macs_by_part(model):
    return {part.name: part.macs for part in count_complexity(model, (320, 320)).parts if part.level <= 1}


@pytest.mark.full
def test_detectors_whose_tensor_mode_lacks_something():
    """Fast R-CNN has no region proposals, distilled detectors compute nothing more than what they are distilled to, a
    semi-supervised one is its detector, and masks of as many instances as may be detected are counted."""
    faster = macs_by_part(build_stock('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'))
    fast = macs_by_part(build_stock('fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py'))
    assert fast['FastRCNN'] == faster['FasterRCNN'] - faster['rpn_head']
    teacher = macs_by_part(build_stock('soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'))
    caffe = macs_by_part(build_stock('faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco.py'))
    assert {**teacher, 'FasterRCNN': 0} == {**caffe, 'FasterRCNN': 0}
    paa = macs_by_part(build_stock('paa/paa_r50_fpn_1x_coco.py'))
    lad = macs_by_part(build_stock('lad/lad_r50-paa-r101_fpn_2xb8_coco_1x.py', teacher_ckpt=None))
    assert lad['LAD'] == paa['PAA']
    gfl = macs_by_part(build_stock('gfl/gfl_r50_fpn_1x_coco.py', backbone=dict(depth=18), neck=dict(
        in_channels=[64, 128, 256, 512])))
    ld = macs_by_part(build_stock('ld/ld_r18-gflv1-r101_fpn_1x_coco.py', teacher_ckpt=None, teacher_config=str(
        Path(importlib.util.find_spec('mmdet').origin).parent / '.mim/configs/gfl/gfl_r101_fpn_ms-2x_coco.py')))
    assert ld['KnowledgeDistillationSingleStageDetector'] == gfl['GFL']
    yolact = macs_by_part(build_stock('yolact/yolact_r50_1xb8-55e_coco.py'))
    assert yolact['other'] == 100 * 32 * 80**2  # 100 instances, each a sum of 32 maps of stride 4
    condinst = macs_by_part(build_stock('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py'))
    assert condinst['other'] == 100 * (10 * 8 + 8 * 8 + 8) * 40**2  # three convolutions of 1 x 1 pixel on maps of stride 8
