import os
import pickle
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope
from safetensors.torch import save_file

from mmsimvit import CheckpointError, SimViT, convert_state_dict
from mmsimvit.weights import find_arch, find_systems, load_file, match
from tests import golden


@pytest.fixture(scope='module')
def published():
    """A checkpoint of SimViT-micro as it is published, with a classification head."""
    state_dict = golden.state_dict(golden.load('simvit')['variants']['micro'])
    state_dict = {name: tensor.float() for name, tensor in state_dict.items()}
    return {**state_dict, 'head.weight': torch.zeros(1000, 256), 'head.bias': torch.zeros(1000)}


@pytest.fixture(scope='module')
def converted(published):
    return convert_state_dict('simvit', published)


@pytest.fixture
def converted_file(converted, tmp_path):
    torch.save(dict(state_dict=converted), tmp_path / 'micro.pth')
    return str(tmp_path / 'micro.pth')


def prefixed(state_dict, prefix):
    return {prefix + name: tensor for name, tensor in state_dict.items()}


LAYOUTS = {
    'plain': lambda sd: sd,
    'model': lambda sd: dict(model=sd, epoch=3),
    'state_dict': lambda sd: dict(state_dict=sd, meta={}),
    'ema is preferred': lambda sd: dict(state_dict={name: tensor + 1 for name, tensor in sd.items()}, state_dict_ema=sd),
    'module': lambda sd: dict(model=prefixed(sd, 'module.')),
    'detector': lambda sd: dict(state_dict={**prefixed(sd, 'backbone.'), 'neck.lateral_convs.0.conv.weight': torch.zeros(1)}),
    'module of detector': lambda sd: dict(state_dict=prefixed(sd, 'module.backbone.')),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_converts_alike(layout, published, converted):
    found = convert_state_dict('simvit', LAYOUTS[layout](published))
    assert found.keys() == SimViT('micro').state_dict().keys()
    assert all(torch.equal(found[name], converted[name]) for name in found)


def test_refuses_what_is_not_of_the_system():
    with pytest.raises(ValueError, match="no system is called 'resnet'; known: .*dwnet, .*simvit"):
        convert_state_dict('resnet', {})
    with pytest.raises(ValueError, match=r"no name among the 1 in this state dict.*\['layer1.weight'\]"):
        convert_state_dict('simvit', {'layer1.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match='must be a mapping of names to tensors, got list'):
        convert_state_dict('simvit', [torch.zeros(1)])


def as_classifier(system, arch):
    """A checkpoint as the system publishes it for ImageNet: a head, tables for 224 x 224 pixels, no norms of maps."""
    state_dict = {name: tensor.float() for name, tensor in golden.state_dict(golden.load(system)['variants'][arch]).items()
                  if not re.match(r'norm\d?\.', name)}
    for name, tensor in state_dict.items():
        if name.endswith('relative_position_bias_table'):
            grid = 14 if name.startswith(('levels.2', 'layers.2')) else 7
            state_dict[name] = golden.parameter(name, [(2 * grid - 1)**2, tensor.shape[1]]).float()
    dims = 8 * len(state_dict['patch_embed.proj.weight'])
    return {**state_dict, 'norm.weight': torch.full((dims, ), 0.5), 'norm.bias': torch.zeros(dims),
            'head.weight': torch.zeros(1000, dims), 'head.bias': torch.zeros(1000)}


@pytest.mark.parametrize(('system', 'arch', 'added'), [
    ('lit', 's', {1, 2}), ('gcvit', 'xxtiny', {0, 1, 2}), ('dwnet', 't', {0, 1, 2, 3})])
def test_classifiers_start_dense_prediction(system, arch, added, tmp_path):
    """Tables are resampled, and norms that a classifier has not begin as they are drawn."""
    published = as_classifier(system, arch)
    converted = convert_state_dict(system, published)
    found, fit = find_arch(system, converted)
    assert (found, fit.complete) == (arch, True)
    assert {int(name.split('.')[1]) for name in fit.added} == added
    torch.save(dict(state_dict=converted), tmp_path / 'weights.pth')
    model = find_systems()[system](arch, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    model.init_weights()
    for name, tensor in model.state_dict().items():
        if name in fit.added:
            assert (tensor == tensor.new_tensor('weight' in name or 'var' in name)).all(), name
        elif name.endswith('table'):
            rows, ours = (round(len(table)**0.5) for table in (converted[name], tensor))
            image = converted[name].t().view(1, -1, rows, rows)
            resized = F.interpolate(image, size=(ours, ours), mode='bicubic')[0].flatten(1).t()
            torch.testing.assert_close(tensor, resized)
        else:
            assert torch.equal(tensor, converted[name]), name
    assert rows < ours if system != 'dwnet' else not any('table' in name for name in converted)


def test_half_a_norm_is_missing():
    state_dict = MODELS.get('DWNet')('t').state_dict()
    del state_dict['stages.1.norm.running_mean']
    found = match(MODELS.get('DWNet')('t'), state_dict)
    assert (found.missing, found.added) == (['stages.1.norm.running_mean'], [])


def test_weights_for_the_same_depths_and_widths_are_offered():
    small = MODELS.get('LIT').arch_zoo['s']
    for change, advice in ((dict(bias_grids=(32, 16)), 'published weights: https'),
                           (dict(depths=(1, 1, 1, 1)), 'no weights of this arch were')):
        with pytest.raises(CheckpointError, match=f'nowhere.pth does not exist; {advice}'):
            MODELS.get('LIT')({**small, **change}, init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth')).init_weights()


def test_a_missing_block_is_no_missing_norm(tmp_path):
    converted = convert_state_dict('gcvit', as_classifier('gcvit', 'xxtiny'))
    kept = {name: tensor for name, tensor in converted.items() if 'stages.1.blocks.1.norm1' not in name}
    torch.save(kept, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=r'2 missing \(stages.1.blocks.1.norm1.weight, stages.1.blocks.1.norm1.bias\)'):
        MODELS.get('GCViT')('xxtiny', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth'))).init_weights()


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
@pytest.mark.parametrize('inside', ['', 'backbone.', 'module.backbone.'])
def test_pretrained_loads_in_all_three_libraries(scope, inside, converted, tmp_path):
    """As the converter writes it, and as a detector's, segmentor's or classifier's training writes it."""
    path = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict={**prefixed(converted, inside), **({'head.fc.weight': torch.zeros(1)} if inside else {})}), path)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(dict(type='SimViT', arch='micro', init_cfg=dict(type='Pretrained', checkpoint=path)))
    model.init_weights()
    assert all(torch.equal(tensor, converted[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('layout', [*LAYOUTS, 'anybody'])
def test_published_files_load_as_they_are(layout, published, converted, tmp_path):
    wrap = LAYOUTS.get(layout, lambda sd: dict(model=prefixed(sd, 'model.encoder.')))
    torch.save(wrap(published), tmp_path / 'weights.pth')
    model = SimViT('micro', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    model.init_weights()
    assert all(torch.equal(tensor, converted[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(('system', 'arch'), [('lit', 's'), ('gcvit', 'xxtiny'), ('dwnet', 't')])
def test_published_classifiers_load_as_they_are(system, arch, tmp_path):
    published = as_classifier(system, arch)
    torch.save(dict(model=published), tmp_path / 'published.pth')
    torch.save(convert_state_dict(system, published), tmp_path / 'converted.pth')
    models = []
    for name in ('published.pth', 'converted.pth'):
        models.append(find_systems()[system](arch, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / name))))
        torch.manual_seed(0)
        models[-1].init_weights()
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(a, b)


def test_two_backbones_in_one_file_are_told_apart_by_a_prefix(converted, tmp_path):
    path = str(tmp_path / 'weights.pth')
    zeros = {name: torch.zeros_like(tensor) for name, tensor in converted.items()}
    torch.save({**prefixed(converted, 'student.backbone.'), **prefixed(zeros, 'teacher.backbone.')}, path)
    with pytest.raises(CheckpointError, match=r"more than once, behind 'student.backbone.', 'teacher.backbone.'; name one: .*"
                                              "prefix='student.backbone.'"):
        SimViT('micro', init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()
    model = SimViT('micro', init_cfg=dict(type='Pretrained', checkpoint=path, prefix='teacher.backbone.'))
    model.init_weights()
    assert not any(tensor.any() for tensor in model.state_dict().values())


def test_the_log_says_what_was_found(published, tmp_path):
    torch.save(dict(model=prefixed(published, 'module.')), tmp_path / 'weights.pth')
    model = SimViT('micro', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmsimvit.backbones.base.print_log', lambda line, logger: lines.append(line))
        model.init_weights()
    assert lines == [f"{tmp_path}/weights.pth gives the parameters of SimViT: published names behind 'module.'; "
                     '0 tensors are resized']


@pytest.mark.parametrize('prefix', ['encoder', 'encoder.'])
def test_a_prefix_may_be_given(prefix, converted, tmp_path):
    torch.save(dict(state_dict=prefixed(converted, 'encoder.')), tmp_path / 'weights.pth')
    model = SimViT('micro', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'), prefix=prefix))
    model.init_weights()
    assert torch.equal(model.stages[1].norm.weight, converted['stages.1.norm.weight'])


def test_pretrained_serves_a_backbone_cut_short(converted_file, converted):
    model = SimViT('micro', out_indices=(1, ), init_cfg=dict(type='Pretrained', checkpoint=converted_file))
    model.init_weights()
    assert torch.equal(model.stages[1].norm.weight, converted['stages.1.norm.weight'])


def test_norms_of_maps_that_are_not_returned_stay_unused(tmp_path):
    """A detector's checkpoint starts one whose neck leaves out the first map."""
    whole = MODELS.get('GCViT')('xxtiny')
    torch.save(whole.state_dict(), tmp_path / 'weights.pth')
    model = MODELS.get('GCViT')('xxtiny', out_indices=(1, 2, 3), init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    model.init_weights()
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(('change', 'message'), [
    (lambda sd: {f'layer.{name}'.replace('stages', 'parts'): tensor for name, tensor in sd.items()},
     'gives 0 of the 184 parameters of SimViT'),
    (lambda sd: {name: sd[name] for name in sd if 'stages.2.blocks.1.ffn' not in name},
     r'178 of the 184.*6 missing \(stages.2.blocks.1.ffn.fc1.weight, .*, \.\.\.\)'),
    (lambda sd: {**sd, 'stages.0.norm.weight': torch.zeros(33)},
     r'1 of another shape \(stages.0.norm.weight: \(33,\) instead of \(32,\)\)'),
    (lambda sd: {**sd, 'stages.2.blocks.3.norm1.weight': torch.zeros(160)},
     r'1 not used \(stages.2.blocks.3.norm1.weight\)'),
])
def test_pretrained_refuses_what_does_not_fit(change, message, converted, tmp_path):
    path = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict=change(converted)), path)
    with pytest.raises(CheckpointError, match=message) as error:
        SimViT('micro', init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()
    assert path in str(error.value)
    assert f'another arch? published weights: {SimViT.published.url}, which are loaded as they are' in str(error.value)
    assert '--cfg-options model.backbone.init_cfg=None' in str(error.value)
    assert '\n' not in str(error.value)


def test_pretrained_says_where_missing_weights_are():
    with pytest.raises(CheckpointError, match='nowhere.pth does not exist; published weights: https://github.com/ucasligang'):
        SimViT('micro', init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth')).init_weights()


class Payload:
    """What a stranger's checkpoint might hold: loading it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def test_a_missing_checkpoint_names_those_near(tmp_path):
    for name in ('epoch_6.pth', '.4242.epoch_66.pth'):  # the latter of a training that was killed while it wrote
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r'/epoch_66.pth does not exist; near to it: epoch_6.pth$'):
        load_file(str(tmp_path / 'epoch_66.pth'))


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    for name, save in (('zip.pth', torch.save), ('pickle.pth', lambda obj, path: path.write_bytes(pickle.dumps(obj)))):
        save(dict(state_dict={}, extra=Payload(str(tmp_path / 'proof'))), tmp_path / name)
        with pytest.raises(CheckpointError, match=f'{name} is refused: it holds more than tensors'):
            load_file(str(tmp_path / name))
    assert not (tmp_path / 'proof').exists()


def test_code_in_a_downloaded_checkpoint_does_not_run(tmp_path, monkeypatch):
    torch.save(dict(state_dict={}, extra=Payload(str(tmp_path / 'proof'))), tmp_path / 'stranger.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    monkeypatch.setattr('torch.hub.download_url_to_file',
                        lambda url, path, *_, **__: shutil.copy(tmp_path / 'stranger.pth', path))
    with pytest.raises(CheckpointError, match='is refused: it holds more than tensors'):
        load_file('https://example.org/stranger.pth')
    assert not (tmp_path / 'proof').exists()
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_safetensors_load(published, converted, tmp_path, monkeypatch):
    tensors = {'a': torch.arange(3), 'b': torch.randn(2, 3).half(), 'none': torch.zeros(0, 3), 'one': torch.tensor(4.)}
    save_file(tensors, tmp_path / 'some.safetensors')
    found = load_file(str(tmp_path / 'some.safetensors'))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)
    save_file(published, tmp_path / 'published.safetensors')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    monkeypatch.setattr('torch.hub.download_url_to_file',
                        lambda url, path, **_: shutil.copy(tmp_path / 'published.safetensors', path))
    for path in (str(tmp_path / 'published.safetensors'), 'https://example.org/published.safetensors'):
        model = SimViT('micro', init_cfg=dict(type='Pretrained', checkpoint=path))
        model.init_weights()
        assert all(torch.equal(tensor, converted[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('content', [
    b'', b'PK\x03\x04 cut short', b'\2' + bytes(7) + b'[]', b'\x0d' + bytes(7) + b'{"a": [1, 2]}',
    b'\x3a' + bytes(7) + b'{"a": {"dtype": "F32", "shape": [2], "data_offsets":[0,8]}}' + bytes(4)])
def test_broken_safetensors_are_named(content, tmp_path):
    (tmp_path / 'broken.safetensors').write_bytes(content)
    with pytest.raises(CheckpointError, match='broken.safetensors'):
        load_file(str(tmp_path / 'broken.safetensors'))


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 cut short', b'no checkpoint'])
def test_broken_files_are_named(content, tmp_path):
    (tmp_path / 'broken.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match='broken.pth'):
        load_file(str(tmp_path / 'broken.pth'))
