"""What a wheel carries, beside the package, for mim."""
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, run

INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
PARAMETERS = json.loads((ROOT / 'tests/model_parameters.json').read_text())


def test_index_has_every_published_setting_once():
    configs = [model['Config'] for model in INDEX['Models']]
    own = ('shapes', 'custom', 'comparison')
    assert sorted(configs) == sorted(f'configs/{name}' for name in PARAMETERS if not any(word in name for word in own))
    for model in INDEX['Models']:
        assert model['Name'] == Path(model['Config']).stem
        assert model['Metadata']['Parameters'] == PARAMETERS[model['Config'].removeprefix('configs/')]
        assert model['In Collection'] in {collection['Name'] for collection in INDEX['Collections']}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    for name in ('mmsimvit', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'requirements.txt', 'MANIFEST.in', 'model-index.yml', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    run('-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', target, source, cwd=target)
    return next(target.glob('mmsimvit-*.whl'))


def test_wheel_carries_configs_tools_and_index_for_mim(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        file.extractall(tmp_path)
    configs = {f'mmsimvit/.mim/configs/{name}' for name in PARAMETERS}
    assert configs <= names
    assert {'mmsimvit/.mim/model-index.yml', 'mmsimvit/.mim/tools/train.py', 'mmsimvit/.mim/tools/test.py',
            'mmsimvit/.mim/tools/dist_train.sh', 'mmsimvit/.mim/tools/slurm_train.sh', 'mmsimvit/.mim/configs/_base_/fsdp.py',
            'mmsimvit/.mim/configs/_base_/default_runtime.py', 'mmsimvit/backbones/simvit.py', 'mmsimvit/py.typed'} <= names
    assert not any('tests/' in name or name.endswith('.pyc') for name in names)
    out = run('-c', f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import mmsimvit; print(mmsimvit.__file__); "
              f"from mmengine.config import Config; "
              f"print(Config.fromfile({str(tmp_path / 'mmsimvit/.mim/configs/maskrcnn_simvit_l_coco.py')!r}).model.type)",
              cwd=tmp_path)
    assert out.splitlines()[-2:] == [f'{tmp_path}/mmsimvit/__init__.py', 'MaskRCNN']
