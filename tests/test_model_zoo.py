"""What the pages say of the systems, and its sources: configs, metafiles, counts."""
import copy
import json
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mmsimvit import DWNet
from mmsimvit.weights import find_systems
from tests.conftest import ROOT, load_tool

model_zoo = load_tool(ROOT / 'tools/model_zoo.py')
INDEX = model_zoo.load_index(path.read_text() for path in model_zoo.metafiles())
COUNTS = json.loads((ROOT / 'docs/model_zoo.json').read_text())
WRITE = 'run python tools/model_zoo.py'


def test_index_has_every_published_setting_once():
    configs = [model['Config'] for model in INDEX['Models']]
    assert sorted(configs) == sorted(f'configs/{name}' for name in COUNTS if model_zoo.find_task(name))
    own = ('shapes', 'custom')
    assert all(any(word in name for word in own) for name in COUNTS if f'configs/{name}' not in configs)
    for model in INDEX['Models']:
        assert model['Name'] == Path(model['Config']).stem
        assert model['Metadata']['Parameters'] == COUNTS[model['Config'].removeprefix('configs/')]['parameters']
        assert model['Metadata']['FLOPs'] == COUNTS[model['Config'].removeprefix('configs/')]['macs']
        assert model['In Collection'] in {collection['Name'] for collection in INDEX['Collections']}


def test_every_config_is_counted():
    assert sorted(COUNTS) == [path.relative_to(ROOT / 'configs').as_posix() for path in model_zoo.config_files()], WRITE


@pytest.mark.pages
@pytest.mark.parametrize('name', sorted(COUNTS))
def test_the_counts_are_fresh(name):
    assert model_zoo.count(ROOT / 'configs' / name) == COUNTS[name], WRITE


def test_what_is_written_is_fresh():
    """The metafiles' counts, the model zoo, and the tables of the README and of other pages."""
    written = model_zoo.render_all(COUNTS)
    stale = [path.relative_to(ROOT).as_posix() for path, text in written.items() if path.read_text() != text]
    assert stale == [], WRITE


def test_a_page_without_its_marks_is_named():
    with pytest.raises(ValueError, match='lacks the line <!-- systems: written by'):
        model_zoo.insert('# A page\n', 'systems', ['| a |'])


def test_every_system_has_a_metafile_that_says_what_its_class_does():
    collections = {collection['Name'].lower(): collection for collection in INDEX['Collections']}
    assert len(collections) == len(INDEX['Collections'])
    for name, kind in find_systems().items():
        assert collections[name]['Code']['URL'] == kind.published.url
        assert collections[name]['License'] == kind.published.licence


def test_the_backbones_that_are_a_librarys_code_say_so():
    libraries = {collection['Name']: collection['Library'] for collection in INDEX['Collections'] if 'Library' in collection}
    rows = model_zoo.load_config(model_zoo.LIBRARIES).backbones
    assert libraries == {paper: 'MMDetection' if paper in ('Swin', 'PVT', 'PVTv2') else 'MMPreTrain' for paper in rows}
    for collection in INDEX['Collections']:
        if library := libraries.get(collection['Name']):
            assert collection['Code']['URL'] == f'https://github.com/open-mmlab/{library.lower()}'
            scope = dict(MMDetection='mmdet', MMPreTrain='mmpretrain')[library]
            assert {row.settings.type.partition('.')[0] for row in rows[collection['Name']].values()} == {scope}
            assert not any(result['Metrics'] for entry in INDEX['Models'] if entry['In Collection'] == collection['Name']
                           for result in entry['Results'])  # they are in the library's model zoo


@pytest.mark.parametrize(('config', 'label'), [
    ('swin/retinanet_swin_s_coco.py', 'Swin s'), ('pvtv2/semfpn_pvtv2_b5_ade20k.py', 'PVTv2 b5'),
    ('twins/maskrcnn_twins_svt_b_coco.py', 'Twins svt_b')])
def test_a_librarys_backbone_is_named_by_its_row_of_the_table(config, label):
    cfg = Config.fromfile(ROOT / 'configs' / config)
    assert model_zoo.backbone(cfg) == label
    cfg.model.backbone.init_cfg = None
    assert model_zoo.backbone(cfg) == label
    cfg.model.backbone.type = 'mmdet.ResNet'
    assert model_zoo.backbone(cfg) == 'ResNet'


def test_mim_reads_the_same():
    """By the package that it reads model-index.yml with: all of the metafiles, and nothing to complain of."""
    read = pytest.importorskip('modelindex.load_model_index').load(str(ROOT / 'model-index.yml'))
    assert read.check(silent=True) == []
    assert [collection.name for collection in read.collections] == [collection['Name'] for collection in INDEX['Collections']]
    assert [(model.name, model.config, model.metadata.data['Parameters'], [result.metrics for result in model.results])
            for model in read.models] == [
        (model['Name'], model['Config'], model['Metadata']['Parameters'], [result['Metrics'] for result in model['Results']])
        for model in INDEX['Models']]


@pytest.mark.parametrize(('settings', 'label'), [
    (dict(type='GCViT', arch='tiny'), 'GCViT tiny'),
    (dict(type='GCViT', arch='tiny', window_sizes=[24, 24, 24, 24]), 'GCViT tiny'),
    (dict(type='GCViT', arch='tiny', window_sizes=(7, 7, 14, 7)), 'GCViT tiny (changed)'),
    (dict(type='GCViT', arch='tiny', depths=(3, 4, 6, 5)), 'GCViT xtiny'),
    (dict(type='GCViT', arch='tiny', depths=(1, 1, 1, 1)), 'GCViT (smaller)'),
    (dict(type='DWNet', arch='t', kernels='dynamic'), 'DWNet dynamic_t'),
    (dict(type='DWNet', arch={**DWNet.arch_zoo['dynamic_b'], 'mlp_ratios': (2, 2, 2, 2)}), 'DWNet dynamic_b (changed)'),
    (dict(type='mmdet.ResNet', depth=18), 'ResNet 18'),
])
def test_a_backbone_is_named_by_its_arch_and_what_overrides_it(settings, label):
    assert model_zoo.backbone(Config(dict(model=dict(backbone=settings)))) == label


def test_a_config_without_an_entry_gets_one(tmp_path, monkeypatch):
    monkeypatch.setattr(model_zoo, 'ROOT', tmp_path)
    path = tmp_path / 'configs/new/metafile.yml'
    path.parent.mkdir(parents=True)
    for name in ('maskrcnn_new_t_coco_3x', 'new_t_imagenet', 'maskrcnn_new_mini_shapes'):
        (path.parent / f'{name}.py').touch()
    counts = {f'new/{path.name}': dict(parameters=1, macs=2, shape=[3, 4]) for path in path.parent.glob('*.py')}
    text = model_zoo.fill(path, 'Collections:\n  - Name: New\nModels:\n', counts)
    assert model_zoo.fill(path, text, counts) == text
    coco, imagenet = yaml.safe_load(text)['Models']
    assert imagenet['Name'] == 'new_t_imagenet'
    assert coco == {'Name': 'maskrcnn_new_t_coco_3x', 'In Collection': 'New', 'Config': 'configs/new/maskrcnn_new_t_coco_3x.py',
                    'Metadata': {'Parameters': 1, 'FLOPs': 2},
                    'Results': [{'Task': 'Object Detection', 'Dataset': 'COCO', 'Metrics': {}}]}


def test_the_page_says_what_is_published_and_what_was_reproduced():
    """Nothing was, so the column is empty; what would be shown in it is tried."""
    entry = copy.deepcopy(next(entry for entry in INDEX['Models'] if entry['Name'] == 'gfl_simvit_s_coco_3x'))
    line, = model_zoo.list_configs([path := 'gfl_simvit_s_coco_3x.py'], COUNTS, {path: entry})[2:]
    assert line == ('| `gfl_simvit_s_coco_3x` | SimViT small | 37,139,353 | '
                    f'{COUNTS[path]["macs"] / 1e9:.1f} | 36 epochs, batch size 16 | box AP 49.9 |  |')
    entry['Metadata']['Reproduced'] = {'box AP': 49.5}
    assert model_zoo.list_configs([path], COUNTS, {path: entry})[2].endswith('| box AP 49.9 | box AP 49.5 |')
