"""Counting parameters, FLOPs and activations, against numbers derived by hand."""
from math import ceil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmsimvit import SimViT
from mmsimvit.backbones import simvit
from mmsimvit.cli.get_flops import main
from mmsimvit.engine.complexity import count_complexity
from mmsimvit.errors import ModelError
from tests.conftest import ROOT, run

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
    """(stage, kind) -> parameters, MACs and activations of SimViT, as the paper describes it."""
    found, previous, previous_stride = {}, 3, 1
    for stage, (dims, depth, ratio, heads, stride) in enumerate(zip(*ARCHS[arch][:3], NUM_HEADS, STRIDES)):
        pixels, hidden, patch = ceil(height / stride) * ceil(width / stride), ratio * dims, (stride // previous_stride)**2
        seen = 9 if stage < 3 else pixels  # the window of 3 x 3 pixels; the whole map in the last stage
        found[stage, 'patch embedding'] = (dims * previous * patch + dims, pixels * dims * previous * patch, pixels * dims)
        # Query, key, value and output: four layers as wide as the map.
        found[stage, 'attention projections'] = (
            depth * 4 * (dims**2 + dims), depth * pixels * 4 * dims**2, depth * pixels * 4 * dims)
        found[stage, 'attention products'] = (0, depth * pixels * 2 * seen * dims, depth * pixels * (heads * seen + dims))
        found[stage, 'FFN'] = (
            depth * (dims * hidden + hidden + 9 * hidden + hidden + hidden * dims + dims),
            depth * pixels * (dims * hidden + 9 * hidden + hidden * dims), depth * pixels * (hidden + hidden + dims))
        found[stage, 'norms'] = (2 * dims * (1 + 2 * depth + 1), 0, 0)
        previous, previous_stride = dims, stride
    return found


def by_path(parts):
    """(stage, kind) -> the numbers of a counted backbone."""
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


def test_real_numbers_are_counted_alike(monkeypatch):
    """On a CPU the FFN is computed in chunks, and attention by a fused kernel; the count must not depend on that."""
    chunked = []

    def spy(*arguments):
        chunked.append(arguments)
        return in_chunks(*arguments)

    in_chunks = simvit.conv_ffn_in_chunks
    monkeypatch.setattr(simvit, 'conv_ffn_in_chunks', spy)
    real, meta = (count_complexity(Wrapper(looks), (448, 416)) for looks in (True, False))
    assert chunked
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


def test_the_table(capsys):
    main([str(ROOT / 'configs/upernet_simvit_micro_shapes.py'), '--shape', '96', '128'])
    out = capsys.readouterr().out
    model = build('upernet_simvit_micro_shapes.py')
    total = count_complexity(model, (96, 128)).total
    line = next(line for line in out.splitlines() if 'EncoderDecoder' in line)
    assert [cell.strip() for cell in line.strip('│ ').split('│')] == [
        'EncoderDecoder', f'{sum(p.numel() for p in model.parameters()):,}', f'{total.macs / 1e9:.4f}',
        f'{2 * total.macs / 1e9:.4f}', f'{total.activations / 1e6:.4f}']
    assert 'one image of 96 x 128 pixels' in out and '1 MAC (multiply-accumulate) = 2 FLOPs' in out
    assert 'Not run outside of training: auxiliary_head.' in out


class Refusing(nn.Module):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        raise RuntimeError("Couldn't load custom C++ ops. Compile them anew.\nwhere it was")


def test_the_advice_in_an_error_is_kept():
    """As torchvision gives it, which comes after a full stop."""
    with pytest.raises(ModelError, match=r"Couldn't load custom C\+\+ ops\. Compile them anew\.$"):
        count_complexity(Refusing(), (32, 32))


def test_bad_input_ends_with_one_line(tmp_path, capsys):
    config = str(ROOT / 'configs/simvit_micro_shapes.py')
    for words, message in (
        ([config, '--shape', '224'], 'argument --shape: expected 2 arguments'),
        ([config, '--shape', '224', '0'], "argument --shape: must be positive whole numbers, got '0'"),
        ([config, '--shape', '224', '-8'], "argument --shape: must be positive whole numbers, got '-8'"),
        ([config, '--shape', '2.5', '8'], "argument --shape: must be positive whole numbers, got '2.5'"),
    ):
        with pytest.raises(SystemExit, match='2'):
            main(words)
        assert message in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit, match=r'error: .*1x.py has no model; name the config of a detector'):
        main([str(ROOT / 'configs/_base_/schedules/1x.py')])
    (tmp_path / 'no_base.py').write_text("model = dict(backbone=dict(type='SimViT'))\n")
    with pytest.raises(SystemExit, match=r"error: the model of .*no_base.py has no type; is the config's line _base_ = "):
        main([str(tmp_path / 'no_base.py')])
    with pytest.raises(SystemExit, match='error: ImageClassifier cannot be run on an image of 224 x 224 pixels: '):
        broken = tmp_path / 'broken.py'
        broken.write_text(f"_base_ = {config!r}\nmodel = dict(neck=dict(type='LinearNeck', in_channels=99, out_channels=8))\n")
        main([str(broken)])
    with pytest.raises(SystemExit, match='error: the in_channels of head are 99, but the maps of this SimViT have 256'):
        main([config, '--cfg-options', 'model.head.in_channels=99'])
    out = run(ROOT / 'tools/get_flops.py', tmp_path / 'nowhere.py', cwd=tmp_path, code=1)
    assert out.startswith(f'error: config {tmp_path}/nowhere.py does not exist, neither as a file nor among the ')
    assert len(out.splitlines()) == 1
