import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmsimvit import CheckpointError, SimViT
from mmsimvit.weights import convert_head
from tests import golden
from tests.conftest import ROOT, load_tool, refusal, run

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


def test_keeps_the_head_of_a_classifier(published, tmp_path):
    """The published model's scores with our ImageNet config: the mean of the last map through the published layer."""
    main = load_tool(TOOL).main
    checkpoint = torch.load(published)
    head = torch.randn(1000, 256)
    checkpoint['model'].update({'head.weight': head, 'head.bias': torch.arange(1000.)})
    torch.save(checkpoint, tmp_path / 'src.pth')
    main([str(tmp_path / 'src.pth'), str(tmp_path / 'dst.pth'), '--system', 'simvit', '--with-head'])
    cfg = Config.fromfile(ROOT / 'configs/simvit_micro_imagenet.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).eval()
    model.load_state_dict(torch.load(tmp_path / 'dst.pth')['state_dict'])
    backbone = SimViT('micro', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'src.pth'))).eval()
    backbone.init_weights()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(image)[-1].mean((2, 3)) @ head.T + torch.arange(1000.)
        torch.testing.assert_close(model(image, mode='tensor'), expected)


def test_keeps_no_head_that_would_give_other_scores(published, tmp_path):
    checkpoint = torch.load(published)
    for name in ('head.weight', 'head.bias'):
        del checkpoint['model'][name]
    torch.save(checkpoint, tmp_path / 'dense.pth')
    words = [str(tmp_path / 'dense.pth'), str(tmp_path / 'dst.pth'), '--system', 'simvit', '--with-head']
    assert 'dense.pth: it has no head.weight and head.bias: it is of no classifier; without --with-head' in refusal(
        load_tool(TOOL).main, *words, cwd=tmp_path)
    assert not (tmp_path / 'dst.pth').exists()
    with pytest.raises(CheckpointError, match='the published classifier of dwnet t is another .* the same for: none'):
        convert_head('dwnet', 't', {})
    with pytest.raises(CheckpointError, match='lit ti is another .* the same for: s, m, b'):
        convert_head('lit', 'ti', {})


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
