"""The model zoo's page and its sources: configs, model-index.yml, counts."""
import json
from pathlib import Path

import yaml

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
    """The counts themselves are checked by the tests of configs."""
    assert sorted(COUNTS) == [path.relative_to(ROOT / 'configs').as_posix() for path in model_zoo.config_files()], WRITE


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
