"""The doctor: in the environment that the tests run in, and in broken ones."""
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys

import mmcv._ext
import pytest

from mmsimvit.cli import doctor
from mmsimvit.cli.doctor import Check
from mmsimvit.stacks import ONEDL, UPSTREAM, installed_stack, name_of
from tests.conftest import ROOT

TITLES = [check.title for check in doctor.CHECKS]


def run_doctor(*paths, code=1, words=(), cwd=ROOT):
    """Its output with these folders on PYTHONPATH."""
    result = subprocess.run([sys.executable, '-m', 'mmsimvit', 'doctor', *words], cwd=cwd, capture_output=True, text=True,
                            timeout=300, env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths))})
    assert result.returncode == code, result.stdout + result.stderr
    assert 'Traceback' not in result.stdout + result.stderr
    return result.stdout


def package(folder, name, text):
    path = folder.joinpath(*name.split('.'))
    path.mkdir(parents=True)
    (path / '__init__.py').write_text(text)


def metadata(folder, name, version):
    path = folder / f'{name}-{version}.dist-info'
    path.mkdir(parents=True)
    (path / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')


def environment(stack, **changes):
    """What is found where a stack is installed; None for what is not."""
    found = {module: {name_of(requirement): requirement.split('==')[1]} for module, requirement in stack.items()}
    return {**found, **{module: {} if versions is None else versions for module, versions in changes.items()}}


@pytest.mark.parametrize(('file', 'stack'), [('requirements.txt', UPSTREAM), ('requirements-onedl.txt', ONEDL)])
def test_its_versions_are_those_of_the_requirements(file, stack):
    assert [line for line in (ROOT / file).read_text().splitlines() if '==' in line] == list(stack.values())


@pytest.mark.full
def test_nothing_is_wrong_here():
    out = run_doctor(code=0)
    for module, requirement in installed_stack().items():
        names = importlib.metadata.packages_distributions().get(module, [name_of(requirement)])  # mmcv-lite or mmcv
        version = re.escape(importlib.metadata.version(names[0]))
        assert re.search(rf'^  {module} .*{version}.* \(supported: from ', out, re.M), out
    assert re.findall(r'^  (\S.*?) +works  ', out, re.M) == TITLES
    assert re.search(r'SimViT-micro +works +forward and training step on cpu, attention by eager$', out, re.M)
    whose = re.escape(getattr(mmcv._ext, '__file__', 'of torchvision, by mmsimvit'))
    assert re.search(rf'mmcv +works +operators {whose}$', out, re.M)
    assert re.search(r'mmengine +works .*MMEngine: ', out, re.S)
    assert out.endswith('\nnothing is wrong\n')


def test_a_torch_that_does_not_load(tmp_path):
    package(tmp_path, 'torch', "raise OSError('libcudart.so.13: cannot open shared object file')")
    out = run_doctor(tmp_path)
    assert re.search(rf'^  torch +FAILS +OSError: libcudart.so.13: .* \({tmp_path}/torch/__init__.py:1\)$', out, re.M)
    assert re.findall(r'^  (\S+) +not tried +(.*) must work first$', out, re.M) == [
        ('mmengine', 'torch'), ('torchvision', 'torch'), ('SimViT-micro', 'torch'), ('mmcv', 'torchvision'),
        *((library, 'SimViT-micro') for library in doctor.LIBRARIES)]
    assert re.search(r'\nwrong\n  torch: OSError: .*\n    \$ .* -m pip install --force-reinstall torch==2\.11\.0 torchvision==',
                     out)


@pytest.mark.parametrize('text', ['import nothing_of_that_name', 'raise AttributeError("a part is missing")'])
@pytest.mark.full
def test_mmsimvit_itself_does_not_load(tmp_path, text):
    shutil.copytree(ROOT / 'mmsimvit', tmp_path / 'mmsimvit', ignore=shutil.ignore_patterns('__pycache__'))
    with open(tmp_path / 'mmsimvit/backbones/__init__.py', 'a') as file:
        file.write(text)
    out = run_doctor(tmp_path, cwd=tmp_path, words=['--timeout', '100'])
    assert re.search(rf'^  SimViT-micro +FAILS .*\({tmp_path}/mmsimvit/backbones/__init__.py:\d+\)$', out, re.M)
    assert re.findall(r'^  (\S+) +works ', out, re.M) == ['torch', 'mmengine', 'torchvision']
    cure = 'nothing_of_that_name' if 'nothing' in text else '--force-reinstall --no-deps .  # in a clone of mmsimvit'
    assert re.search(rf'\nwrong\n  SimViT-micro: .*\n    \$ .* -m pip install .*{re.escape(cure)}\n', out)


@pytest.mark.parametrize('words', [['-c', 'import mmsimvit', '-m', 'mmsimvit', 'doctor'],
                                   ['-m', 'mmsimvit.train', 'mmsimvit', 'doctor']])
def test_whatever_else_imports_the_package_imports_all_of_it(tmp_path, words):
    package(tmp_path, 'torch', "raise OSError('no torch')")
    result = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True,
                            env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert result.stderr.endswith('OSError: no torch\n')


def crash() -> None:
    import os
    import sys
    print('the last line\n', file=sys.stderr)
    os.kill(os.getpid(), 11)


def leave() -> None:
    import os
    os._exit(3)


def hang() -> None:
    import time
    time.sleep(60)


def refuse() -> None:
    raise SystemExit('no licence')


@pytest.mark.parametrize(('function', 'told'), [
    (crash, f'killed by signal 11, {signal.strsignal(11)}; its last words: the last line'),
    (leave, 'ended with status 3; its last words: nothing'), (refuse, 'ended with status 1; its last words: no licence'),
    (hang, 'hangs, stopped after 2 s')])
def test_checks_that_end_their_process(function, told):
    assert doctor.run_check(Check('check', 'torch', function), 2 if function is hang else 20) == (False, told)


@pytest.mark.parametrize('stack', [UPSTREAM, ONEDL])
def test_a_whole_stack_is_supported(stack):
    assert doctor.judge_versions(environment(stack), stack) == ([], [])


@pytest.mark.parametrize(('stack', 'changes', 'text', 'command'), [
    (UPSTREAM, dict(torch=None), 'torch is not installed', 'install torch==2.11.0'),
    (UPSTREAM, dict(torch={'torch': '2.5.1+cu124'}), 'torch 2.5.1+cu124 is not supported, torch from 2.6 on',
     'install --force-reinstall torch==2.11.0 torchvision==0.26.0'),
    (UPSTREAM, dict(torchvision=None), 'torchvision is not installed', 'install torchvision==0.26.0'),
    (UPSTREAM, dict(mmengine=None), 'mmengine is not installed', 'install mmengine==0.10.7'),
    (ONEDL, dict(mmengine=None), 'mmengine is not installed', 'install onedl-mmengine==0.10.12'),
    (UPSTREAM, dict(mmcv=None), 'mmcv is not installed', 'install mmcv-lite==2.1.0'),
    (UPSTREAM, dict(mmcv={'mmcv-full': '1.7.2'}), 'mmcv-full 1.7.2 is not supported',
     'uninstall -y mmcv mmcv-full mmcv-lite onedl-mmcv; '),
    (UPSTREAM, dict(mmcv={'mmcv': '2.2.0'}), 'mmcv 2.2.0 is not supported, mmcv from 2.0 on, before 2.2 is',
     'mmcv-lite==2.1.0'),
    (UPSTREAM, dict(mmcv={'onedl-mmcv': '2.3.0'}), 'onedl-mmcv 2.3.0 is not supported', 'mmcv-lite==2.1.0'),
    (UPSTREAM, dict(mmcv={'mmcv': '2.1.0', 'onedl-mmcv': '2.3.0'}), 'mmcv comes from mmcv 2.1.0, onedl-mmcv 2.3.0',
     'pip install mmcv-lite==2.1.0'),
    (UPSTREAM, dict(mmdet={'mmdet': '2.28.2'}), 'mmdet 2.28.2 is not supported', '--no-deps mmdet==3.3.0'),
])
def test_versions_that_are_not_supported(stack, changes, text, command):
    notes, wrong = doctor.judge_versions(environment(stack, **changes), stack)
    (told, cure), = wrong
    assert text in told
    assert command in cure
    assert cure.startswith(f'{sys.executable} -m pip ')
    assert notes == []


def test_torch_and_mmengine_are_enough():
    alone = environment(UPSTREAM, **dict.fromkeys(('torchvision', 'mmcv', *doctor.LIBRARIES)))
    notes, wrong = doctor.judge_versions(alone, UPSTREAM)
    assert wrong == []
    assert [text.split()[0] for text, _ in notes] == ['torchvision', 'mmcv', *doctor.LIBRARIES]
    notes, wrong = doctor.judge_versions({**alone, 'mmdet': {'mmdet': '3.3.0'}}, UPSTREAM)
    assert [text for text, _ in wrong] == ['torchvision is not installed', 'mmcv is not installed']


def test_versions_come_from_the_metadata(tmp_path, monkeypatch):
    package(tmp_path, 'mmcv', '')
    (tmp_path / 'mmdet').mkdir()  # a folder of that name is no package
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    for module in doctor.SUPPORTED:  # where an imported one was found is kept
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert doctor.find_versions('mmcv') == {name_of(UPSTREAM['mmcv']): f'of unknown version in {tmp_path}/mmcv'}
    assert doctor.find_versions('mmdet') == doctor.find_versions('mmseg') == {}
    metadata(tmp_path, 'mmcv', '2.1.0')
    metadata(tmp_path, 'onedl_mmcv', '2.3.0')
    importlib.invalidate_caches()
    assert doctor.find_versions('mmcv') == {'mmcv': '2.1.0', 'onedl-mmcv': '2.3.0'}
    (tmp_path / 'mmcv-2.1.0.dist-info/METADATA').write_text('')  # cut short
    importlib.invalidate_caches()
    found = doctor.find_versions('mmcv')
    assert not found['mmcv'][0].isdigit()
    assert found['onedl-mmcv'] == '2.3.0'


@pytest.mark.parametrize(('title', 'reason', 'command'), [
    ('mmcv', 'ImportError: libGL.so.1: cannot open shared object file', 'sudo apt install libgl1 libglib2.0-0'),
    ('mmseg', "ModuleNotFoundError: No module named 'cv2'", 'pip install opencv-python'),
    ('mmseg', "ModuleNotFoundError: No module named 'ftfy'", 'pip install ftfy regex'),
    ('mmengine', "ModuleNotFoundError: No module named 'pkg_resources'", "pip install 'setuptools<81'"),
    ('mmseg', "ModuleNotFoundError: No module named 'prettytable'", 'prettytable'),
    ('mmdet', "ModuleNotFoundError: No module named 'mmdet.core'", '--no-deps mmdet==3.3.0'),
    ('mmdet', 'AssertionError: MMCV==2.2.0 is used but incompatible.', 'pip install mmcv-lite==2.1.0'),
    ('mmcv', 'ImportError: mmcv/_ext.so: undefined symbol: _ZN3c10', 'pip install mmcv-lite==2.1.0'),
    ('torchvision', 'RuntimeError: operator torchvision::nms does not exist', 'torch==2.11.0 torchvision==0.26.0'),
    ('torch', 'RuntimeError: torch 2.11.0, CUDA 13.0 does not see what the driver has', '/cu126'),
    ('SimViT-micro', 'killed by signal 11; its last words: triton on cuda', 'export MMSIMVIT_BACKEND=composite'),
    ('SimViT-micro', 'ImportError: mmsimvit needs torch 2.6 or later', 'torch==2.11.0'),
    ('SimViT-micro', 'RuntimeError: a training step gives numbers that are not finite on cpu', '# in a clone of mmsimvit'),
])
def test_what_mends_a_failed_check(title, reason, command):
    check = next(check for check in doctor.CHECKS if check.title == title)
    assert command in doctor.find_cure(check.module, reason, UPSTREAM)
