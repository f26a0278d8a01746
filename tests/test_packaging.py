"""What is released: an sdist, and a wheel that needs no checkout."""
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

import mmsimvit
from tests.conftest import ROOT, options, run

CONFIGS = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs').rglob('*.py')}
LEFT_OUT = ('.*', 'data', 'work_dirs', 'checkpoints', 'build', 'dist', 'site', '*.egg-info', '__pycache__')


def test_one_version():
    assert re.search(r'^## (\S+) ', (ROOT / 'CHANGELOG.md').read_text(), re.M)[1] == mmsimvit.__version__


def test_an_editable_installation_is_a_path(tmp_path):
    """Which a folder named mmsimvit does not hide, such as a clone, for whoever works in the folder that holds it."""
    source = tmp_path / 'source'
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*LEFT_OUT))
    subprocess.run([sys.executable, '-c', "from setuptools import build_meta; build_meta.build_editable('dist')"], cwd=source,
                   check=True, timeout=300, capture_output=True)
    with zipfile.ZipFile(next(source.glob('dist/*.whl'))) as file:
        start, path = sorted((name for name in file.namelist() if '.dist-info' not in name), reverse=True)
        assert path.endswith('.pth')
        assert file.read(path).decode().strip() == str(source)
        assert start == 'mmsimvit_mmcv_ops.pth'


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """A folder with the sdist and the wheel that is built from it."""
    source, target = tmp_path_factory.mktemp('release') / 'source', tmp_path_factory.mktemp('dist')
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*LEFT_OUT))
    subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', target, source], check=True, timeout=300)
    return target


def test_sdist_has_all_that_a_checkout_needs(released):
    file = next(released.glob('mmsimvit-*.tar.gz'))
    with tarfile.open(file) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert names >= CONFIGS
    assert {'README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'CITATION.cff', 'LICENSE', 'Makefile', 'mkdocs.yml',
            'model-index.yml', 'requirements.txt', 'requirements-onedl.txt', 'requirements-dev.txt', 'requirements-docs.txt',
            'docs/index.md', 'tests/conftest.py', 'tests/golden/simvit.json', 'tools/demo.py', 'mmsimvit/py.typed'} <= names


def test_wheel_carries_configs_tools_and_index_for_mim(released):
    with zipfile.ZipFile(next(released.glob('mmsimvit-*.whl'))) as file:
        names = set(file.namelist())
    assert {f'mmsimvit/.mim/{name}' for name in CONFIGS} <= names
    assert {'mmsimvit/.mim/model-index.yml', 'mmsimvit/.mim/configs/metafile.yml', 'mmsimvit/.mim/configs/lit/metafile.yml',
            'mmsimvit/.mim/tools/train.py', 'mmsimvit/.mim/tools/test.py',
            'mmsimvit/.mim/tools/dist_train.sh', 'mmsimvit/.mim/tools/slurm_train.sh', 'mmsimvit/backbones/simvit.py',
            'mmsimvit/py.typed', 'mmsimvit_mmcv_ops.pth'} <= names
    assert any(re.search(r'\.dist-info/(licenses/)?LICENSE$', name) for name in names)
    assert not any('tests/' in name or name.endswith('.pyc') for name in names)


def test_wheel_requires_nothing_but_has_the_stack_as_an_extra(released):
    with zipfile.ZipFile(next(released.glob('mmsimvit-*.whl'))) as file:
        name, = [name for name in file.namelist() if name.endswith('.dist-info/METADATA')]
        requires = re.findall(r'^Requires-Dist: (.+)', file.read(name).decode(), re.M)
    stack = [line for line in (ROOT / 'requirements.txt').read_text().splitlines() if not line.startswith('#')]
    assert requires == [f'{line}; extra == "stack"' for line in stack]


@pytest.mark.full
def test_wheel_alone_trains_a_config_found_by_name(released, tmp_path):
    wheel = next(released.glob('mmsimvit-*.whl'))
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index', '--target', tmp_path / 'site', wheel],
                   check=True, timeout=300)

    where = dict(cwd=tmp_path, site=[tmp_path / 'site', sysconfig.get_path('purelib')])
    assert run('-c', 'import mmsimvit; print(mmsimvit.__file__)', **where).strip() == f'{tmp_path}/site/mmsimvit/__init__.py'
    small = options(**{'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1})
    assert 'coco/segm_mAP' in run('-m', 'mmsimvit.train', 'maskrcnn_simvit_micro_shapes', *small, **where)
    checkpoint = tmp_path / 'work_dirs/maskrcnn_simvit_micro_shapes/epoch_1.pth'
    assert 'coco/segm_mAP' in run('-m', 'mmsimvit.test', 'maskrcnn_simvit_micro_shapes', checkpoint, *small, **where)
