import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

# Without a GPU, Triton's kernels run in its interpreter. Triton reads this when it is imported: torch leaves that to others, of
# which mmengine.runner is one with torch 2.6.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')

from mmengine.runner import set_random_seed

from mmsimvit import generate_shapes
from mmsimvit.analysis.export import EXPORTS
from mmsimvit.stacks import ONEDL, installed_stack

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = Path(importlib.util.find_spec('setuptools').origin).parent
SETTINGS = dict(num_training=8, num_validation=3, image_size=64)
exports = pytest.mark.skipif(not EXPORTS, reason='torch 2.6 cannot export most models for images of any size, 2.11 can')


def options(**changes):
    """Command-line words that shrink the generated data set and its training to seconds."""
    found = {f'{split}_dataloader.dataset.{key}': value for split in ('train', 'val', 'test')
             for key, value in SETTINGS.items()}
    found |= {f'{split}_dataloader.{key}': value for split in ('train', 'val', 'test')
              for key, value in dict(num_workers=0, persistent_workers=False).items()}
    return ['--cfg-options', *(f'{key}={value}' for key, value in {**found, **changes}.items())]


def run(*command, cwd, code=0, site=()):
    """Run Python with the given words; give its output.

    With ``site``, these folders stand for all that is installed: no site-packages are looked at, nor editable installations.
    """
    with tempfile.TemporaryDirectory() as folder:
        # mmengine imports it; from Python 3.12 on setuptools brings it, but only where site-packages are looked at.
        Path(folder, 'distutils').symlink_to(SETUPTOOLS / '_distutils')
        path = [*map(str, site), *([folder] if sys.version_info >= (3, 12) else [])]
        isolated = dict(env={**os.environ, 'PYTHONPATH': os.pathsep.join(path)}) if site else {}
        result = subprocess.run([sys.executable, *(['-S'] if site else []), *map(str, command)], cwd=cwd, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, **isolated)
    assert result.returncode == code, result.stdout[-3000:]
    return result.stdout


def refusal(main, *words, cwd):
    """What a command line, called in this process, ends with."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as error:
        patch.chdir(cwd)
        main([*map(str, words)])
    return str(error.value)


def base_of(name):
    """What to inherit a config of a library from, ``mmseg::upernet/...``; the forked mmengine finds no package of that name."""
    library, path = name.split('::')
    if library == 'mmseg' and installed_stack() is ONEDL:
        return str(Path(importlib.util.find_spec(library).origin).parent / '.mim/configs' / path)
    return name


def load_tool(path):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flatten(tree, prefix=''):
    """The leaves of nested dicts and lists, by their paths."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    if not items:
        return {prefix: tree}
    return {key: value for name, part in items for key, value in flatten(part, f'{prefix}.{name}').items()}


@pytest.fixture(autouse=True)
def seeds():
    """The same random numbers in each test, whichever tests the process ran before."""
    set_random_seed(0)


@pytest.fixture(scope='session')
def workspace(tmp_path_factory):
    """A folder with a small generated data set under data/shapes, for tools to run in."""
    folder = tmp_path_factory.mktemp('workspace')
    generate_shapes(folder / 'data/shapes', **SETTINGS)
    return folder


@pytest.fixture
def own(workspace, tmp_path):
    """The generated images as somebody's own COCO data."""
    shapes, root = workspace / 'data/shapes', tmp_path / 'own'
    for split, name in (('training', 'train'), ('validation', 'val')):
        shutil.copytree(shapes / 'images' / split, root / name)
        (root / 'annotations').mkdir(exist_ok=True)
        shutil.copy(shapes / f'annotations/instances_{split}.json', root / f'annotations/instances_{name}.json')
    return root
