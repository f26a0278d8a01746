"""With parts of the stack alone, what should work works, and the rest says what to install."""
import re
import sysconfig
from pathlib import Path

import pytest

from mmsimvit.stacks import installed_stack, name_of
from tests.conftest import ROOT, options, run

SITE = Path(sysconfig.get_path('purelib'))
LIBRARIES = {  # what it takes beside torch and mmengine, and a config of it
    'mmdet': (('mmcv', 'torchvision'), 'maskrcnn_simvit_micro_shapes'),
    'mmseg': (('mmcv', 'torchvision'), 'semfpn_simvit_micro_shapes'),
    'mmpretrain': (('mmcv', 'torchvision'), 'simvit_micro_shapes'),
}
COMPARISON = '-m', 'mmsimvit', 'compare', 'SimViT:micro', '--task'
OPENMMLAB = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision'}


@pytest.fixture
def with_only(tmp_path):
    """Runs Python where of mmcv, torchvision and the libraries only some are installed."""
    def run_with(installed, *words, code=0, without=()):
        hidden = OPENMMLAB - set(installed) | set(without)
        stack = installed_stack()
        metadata = tuple(name_of(stack[module]).replace('-', '_') + '-' for module in hidden if module in stack)
        metadata += ('mmcv-', ) * ('mmcv' in hidden)  # the compiled one
        (tmp_path / 'site').mkdir(exist_ok=True)
        for path in SITE.iterdir():
            link = tmp_path / 'site' / path.name
            if path.name not in hidden and not path.name.startswith(metadata) and not link.exists():
                link.symlink_to(path)
        return run(*words, cwd=tmp_path, code=code, site=[ROOT, tmp_path / 'site'])
    return run_with


def test_without_mmengine_it_says_what_it_needs_and_the_doctor_how_to_get_it(with_only):
    out = with_only((), '-m', 'mmsimvit.train', 'maskrcnn_simvit_micro_shapes', code=1, without=['mmengine'])
    assert out.splitlines()[-1] == ('ModuleNotFoundError: mmsimvit needs mmengine, which is not installed; python -m '
                                    'mmsimvit doctor has the commands for all that is missing')
    out = with_only((), '-m', 'mmsimvit', 'doctor', code=1, without=['mmengine'])
    assert re.search(r'wrong\n.*mmengine is not installed\n.*-m pip install \S*mmengine==', out, re.S)


@pytest.mark.full
def test_torch_and_mmengine_give_the_backbones(with_only):
    out = with_only((), '-c', '''
import importlib.util, torch
assert not any(map(importlib.util.find_spec, ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision')))
from mmengine.registry import MODELS
import mmsimvit
for name, arch in dict(SimViT='micro', GCViT='xxtiny', DWNet='t').items():
    maps = MODELS.build(dict(type=name, arch=arch))(torch.rand(1, 3, 64, 96))
    sum(x.sum() for x in maps).backward()
print([tuple(x.shape) for x in maps])
print(mmsimvit.find_config('simvit_t_imagenet'))
try:
    mmsimvit.LIT('ti')
except ImportError as error:
    print(error)
''')
    lines = out.strip().splitlines()
    assert lines[-3:-1] == ['[(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]',
                           str(ROOT / 'configs/simvit_t_imagenet.py')]
    assert 'LIT' in lines[-1]
    assert 'pip install torchvision' in lines[-1]
    assert with_only((), '-m', 'mmsimvit', 'doctor').splitlines()[-1] == 'nothing is wrong'


@pytest.mark.parametrize('library', LIBRARIES)
@pytest.mark.full
def test_one_library_trains_its_configs_and_names_the_others(with_only, library):
    needs, config = LIBRARIES[library]
    out = with_only((library, *needs), '-m', 'mmsimvit.train', config, *options(**{
        'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1, 'default_hooks.logger.interval': 1}))
    assert 'Epoch(val)' in out
    others = [name for name in LIBRARIES if name != library]
    out = with_only((library, *needs), '-c', f'''
from mmsimvit.train import main
for config in {[LIBRARIES[other][1] for other in others]}:
    try:
        main([config])
    except SystemExit as error:
        print(error)
''')
    assert out.strip().splitlines()[-2:] == [
        f'error: {LIBRARIES[other][1]} is a config of {other}, which is not installed; pip install '
        f'{installed_stack()[other]}{" ftfy regex" * (other == "mmseg")}' for other in others]


def test_a_library_without_mmcv_is_told_what_it_lacks(with_only):
    out = with_only(('mmdet', 'torchvision'), '-m', 'mmsimvit.train', 'maskrcnn_simvit_micro_shapes', code=1)
    assert out.splitlines() == ['error: maskrcnn_simvit_micro_shapes is a config of mmdet, which needs mmcv, and that is not '
                                'installed; python -m mmsimvit doctor gives the command']


def test_a_missing_library_is_not_all_that_is_lacking_without_mmcv(with_only):
    out = with_only((), '-m', 'mmsimvit.train', 'maskrcnn_simvit_micro_shapes', code=1)
    assert out.splitlines() == [
        'error: maskrcnn_simvit_micro_shapes is a config of mmdet, which is not installed; pip install '
        f'{installed_stack()["mmdet"]}; it also needs mmcv: python -m mmsimvit doctor gives the commands']


@pytest.mark.parametrize('task, library', [('detection', 'mmdet'), ('segmentation', 'mmseg'), ('classification', 'mmpretrain')])
@pytest.mark.full
def test_one_library_compares(with_only, task, library):
    out = with_only((library, *LIBRARIES[library][0]), *COMPARISON, task, '--rates', '1e-3', '--seeds', '0', '--iterations',
                    '2', '--rounds', '1')
    assert 'report.html' in out.splitlines()[-1]


@pytest.mark.parametrize('task, without, told', [
    ('segmentation', [], '--task segmentation trains models of mmseg, which is not installed; pip install '
     f'{installed_stack()["mmseg"]} ftfy regex'),
    ('classification', ['scipy'], 'intervals are computed with SciPy, which is not installed: pip install scipy'),
])
def test_a_comparison_says_what_is_not_installed_before_it_begins(with_only, task, without, told):
    out = with_only(('mmcv', 'mmpretrain', 'torchvision'), *COMPARISON, task, code=1, without=without)
    assert out.splitlines() == [f'error: {told}']
