"""The model zoo's page and its sources: configs, model-index.yml, counts."""
import functools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.registry import MODELS

from tests.conftest import ROOT, load_tool

model_zoo = load_tool(ROOT / 'tools/model_zoo.py')
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
COUNTS = json.loads((ROOT / 'docs/model_zoo.json').read_text())
WRITE = 'run python tools/model_zoo.py'


def test_index_has_every_published_setting_once():
    configs = [model['Config'] for model in INDEX['Models']]
    own = ('shapes', 'custom', 'comparison')
    assert sorted(configs) == sorted(f'configs/{name}' for name in COUNTS if not any(word in name for word in own))
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


def test_the_page_and_the_index_are_fresh():
    text = (ROOT / 'model-index.yml').read_text()
    assert model_zoo.index_with(COUNTS, text) == text, WRITE
    assert model_zoo.render(COUNTS, INDEX) == (ROOT / 'docs/model_zoo.md').read_text(), WRITE


def test_the_page_says_what_is_published_and_what_was_reproduced():
    """Nothing was, so the column is empty; what would be shown in it is tried."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    entry = next(entry for entry in index['Models'] if entry['Name'] == 'gfl_simvit_s_coco_3x')
    line, = model_zoo.table([path := 'gfl_simvit_s_coco_3x.py'], COUNTS, {path: entry})[2:-1]
    assert line == ('| `gfl_simvit_s_coco_3x` | SimViT small | 37,139,353 | '
                    f'{COUNTS[path]["macs"] / 1e9:.1f} | 36 epochs, 16 images a step | box AP 49.9 |  |')
    entry['Metadata']['Reproduced'] = {'box AP': 49.5}
    assert model_zoo.table([path], COUNTS, {path: entry})[2].endswith('| box AP 49.9 | box AP 49.5 |')


def readme_rows():
    """The rows of the README's tables of backbones: class, arch, and cells by the heading of their column."""
    classes = {'SimViT': 'SimViT', 'LIT': 'LIT', 'GC ViT': 'GCViT', 'DWNet': 'DWNet'}
    for table in re.findall(r'(?:^\|.*\n)+', (ROOT / 'README.md').read_text(), re.M):
        heading, _, *rows = ([cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines())
        if heading[0] in classes:
            for arch, *cells in rows:
                yield pytest.param(classes[heading[0]], arch, dict(zip(heading[1:], cells)), id=f'{heading[0]}-{arch}')


@functools.cache
def classifiers():
    """The configs of classifiers, by class and arch of their backbone."""
    return {known.split(' (')[0]: name for name in COUNTS if 'imagenet' in name
            for known in [model_zoo.backbone(model_zoo.Config.fromfile(ROOT / 'configs' / name))]}


@pytest.mark.parametrize(('backbone', 'arch', 'cells'), readme_rows())
def test_the_readme_says_what_the_index_does(backbone, arch, cells):
    with torch.device('meta'):
        model = MODELS.build(dict(type=backbone, arch=arch))
    widths = next(text for heading, text in cells.items() if heading.startswith('widths'))
    assert widths == ', '.join(map(str, model.out_channels))
    assert cells['parameters'] == f'{sum(parameter.numel() for parameter in model.parameters()):,}'
    config = classifiers()[f'{backbone} {arch}']
    assert abs(float(cells['GMACs'].split()[0]) - COUNTS[config]['macs'] / 1e9) < 0.051
    short = Path(config).stem.removesuffix('_imagenet')
    published = {model['Name']: [' / '.join(map(str, result['Metrics'].values())) for result in model['Results']]
                 for model in INDEX['Models']}
    names = {'top-1': '{}_imagenet', 'Mask R-CNN 1x': 'maskrcnn_{}_coco', 'Mask R-CNN 3x': 'maskrcnn_{}_coco_3x',
             'RetinaNet 1x': 'retinanet_{}_coco', 'Cascade Mask R-CNN 3x': 'cascadercnn_{}_coco_3x',
             'Semantic FPN, mIoU': 'semfpn_{}_ade20k', 'UPerNet, mIoU': 'upernet_{}_ade20k'}
    for heading in cells.keys() - {'parameters', 'GMACs', 'widths', 'widths (`in_channels` of the neck)'}:
        column, = (names[name] for name in names if heading.startswith(name))
        assert cells[heading] == ' / '.join(published.get(column.format(short), [])), heading
