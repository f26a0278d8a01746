import re

import pytest
import torch

from mmsimvit import SimViT
from tests import golden
from tests.conftest import ROOT, run

TOOL = ROOT / 'tools/convert_checkpoint.py'


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    variant = golden.load('simvit')['variants']['micro']
    state_dict = {name: tensor.float() for name, tensor in golden.state_dict(variant).items()}
    path = tmp_path_factory.mktemp('published') / 'simvit_micro.pth'
    torch.save(dict(model={**state_dict, 'head.weight': torch.zeros(1000, 256), 'head.bias': torch.zeros(1000)}), path)
    return path


def test_writes_what_init_cfg_loads(published, tmp_path):
    out = run(TOOL, published, tmp_path / 'new/micro.pth', '--system', 'simvit', cwd=tmp_path)
    assert '184 of 184 parameters of SimViT micro matched' in out
    model = SimViT('micro', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'new/micro.pth')))
    model.init_weights()
    case = golden.load('simvit')['variants']['micro']['cases'][0]
    outputs = model.eval()(golden.image(case['input']).float())
    assert all(golden.error(*pair) < 1e-4 for pair in zip(outputs, case['outputs'], strict=True))


@pytest.mark.parametrize(('change', 'message'), [
    (lambda sd: sd.pop('block3.2.mlp.fc1.bias'), r'nearest to it is micro: 1 missing \(stages.2.blocks.2.ffn.fc1.bias\)'),
    (lambda sd: sd.update({'norm2.weight': torch.zeros(65)}), r'1 of another shape \(stages.1.norm.weight: \(65,\) instead of'),
    (lambda sd: sd.update({'block2.3.norm1.bias': torch.zeros(64)}), r'1 not used \(stages.1.blocks.3.norm1.bias\)'),
    (lambda sd: [sd.pop(name) for name in list(sd)[:-1]], 'no name among the 1 in this .*; is it a file of https://github'),
])
def test_writes_nothing_if_a_parameter_does_not_fit(change, message, published, tmp_path):
    checkpoint = torch.load(published)
    change(checkpoint['model'])
    torch.save(checkpoint, tmp_path / 'odd.pth')
    out = run(TOOL, tmp_path / 'odd.pth', tmp_path / 'out.pth', '--system', 'simvit', cwd=tmp_path, code=1)
    assert re.search(message, out.splitlines()[-1])
    assert out.splitlines()[-1].startswith('error: ')
    assert not (tmp_path / 'out.pth').exists()


def test_missing_files_and_systems(tmp_path):
    out = run(TOOL, 'nowhere.pth', tmp_path / 'out.pth', '--system', 'simvit', cwd=tmp_path, code=1)
    assert out.splitlines()[-1] == 'error: checkpoint nowhere.pth does not exist'
    assert 'invalid choice' in run(TOOL, 'a', 'b', '--system', 'nothing', cwd=tmp_path, code=2)
