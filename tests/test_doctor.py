"""The doctor: in the environment that the tests run in, and in broken ones."""
import importlib.metadata
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import mmcv._ext
import pytest

from mmsimvit import doctor
from mmsimvit.doctor import Check, Distribution
from mmsimvit.stacks import ONEDL, UPSTREAM, installed_stack
from tests.conftest import ROOT

SITE = Path('/site-packages')


def environment(**versions):
    """What is found where only these modules are installed, as in ``mmcv='2.1.0'`` or ``mmcv='onedl-mmcv 2.3.0'``."""
    found = {}
    for module, version in versions.items():
        name, _, number = version.rpartition(' ')
        found[module] = [Distribution(name or doctor.MODULES[module], number, SITE)]
    return found


WHOLE = dict.fromkeys(doctor.MODULES, '1.0') | {'setuptools': '80.9.0'} | {
    module: requirement.split('==')[1] for module, requirement in UPSTREAM.items()}
FORKS = WHOLE | {module: requirement.replace('==', ' ') for module, requirement in ONEDL.items()} | {'setuptools': '81.0.0'}


def run_doctor(*paths, code=1, words=()):
    """Its output with these folders on PYTHONPATH."""
    result = subprocess.run(
        [sys.executable, '-m', 'mmsimvit.doctor', *words], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths))})
    assert result.returncode == code, result.stdout + result.stderr
    assert 'Traceback' not in result.stdout + result.stderr
    return result.stdout


def package(folder, name, text):
    path = folder.joinpath(*name.split('.'))
    path.mkdir(parents=True)
    (path / '__init__.py').write_text(text)


def metadata(folder, name, version, text=None, modules=()):
    path = folder / f'{name}-{version}.dist-info'
    path.mkdir(parents=True)
    (path / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n' if text is None else text)
    (path / 'top_level.txt').write_text('\n'.join(modules))
    return path


def look_in(monkeypatch, *folders):
    """Let nothing be installed but what is in these folders."""
    monkeypatch.setattr(sys, 'path', list(map(str, folders)))
    for module in doctor.MODULES:  # where an imported one was found is kept
        monkeypatch.delitem(sys.modules, module, raising=False)


@pytest.mark.parametrize(('file', 'stack'), [('requirements.txt', UPSTREAM), ('requirements-onedl.txt', ONEDL)])
def test_its_versions_are_those_of_the_requirements(file, stack):
    assert [line for line in (ROOT / file).read_text().splitlines() if '==' in line] == list(stack.values())


def test_nothing_is_wrong_here():
    out = run_doctor(code=0)
    for module, name in doctor.MODULES.items():
        if module == 'triton' and importlib.util.find_spec('triton') is None:  # torch for CPUs alone, and macOS
            continue
        names = importlib.metadata.packages_distributions().get(module, [name])  # a fork, mmcv-lite or mmcv
        version = importlib.metadata.version(names[0])
        assert re.search(rf'^  {module} +{re.escape(version)}', out, re.M), out
    titles = [check.title for check in doctor.CHECKS]
    assert re.findall(r'^  (\S.*?) +works  ', out, re.M) == titles
    assert re.search(r'central attention .*composite, eager.* on cpu', out)
    whose = 'compiled operators of mmcv' if hasattr(mmcv._ext, '__file__') else "torchvision's operators by mmsimvit"
    assert re.search(rf'mmcv\.ops\.nms +works .*, {whose}$', out, re.M)
    assert out.endswith('\nnothing is wrong\n')


@pytest.mark.skipif(installed_stack() is ONEDL, reason='is about versions of the upstream stack')
def test_a_torch_that_does_not_load_and_an_mmcv_that_does_not_fit(tmp_path):
    package(tmp_path, 'torch', "raise OSError('libcudart.so.13: cannot open shared object file')")
    metadata(tmp_path, 'mmcv', '2.2.0')
    out = run_doctor(tmp_path)
    assert re.search(rf'^  mmcv +2\.2\.0 in {tmp_path}$', out, re.M)
    assert re.search(rf'^  torch +FAILS +OSError: libcudart.so.13: .* \({tmp_path}/torch/__init__.py:1\)$', out, re.M)
    assert re.search(r'^  mmdet +not tried +torch must work first$', out, re.M)
    wrong = out[out.index('\nwrong\n'):]
    assert 'mmdet 3.3.0 refuses mmcv 2.2.0' in wrong
    assert 'mmsegmentation 1.2.2 refuses mmcv 2.2.0' in wrong
    assert f'torch (imported from {tmp_path}): OSError' in wrong
    assert '\n     $ unset PYTHONPATH\n' in wrong


@pytest.mark.parametrize(('text', 'told'), [
    ('import os; os.abort()', f'killed by signal 6, {signal.strsignal(6)}'),
    ('import sys; sys.exit("no licence")', r'SystemExit: no licence \(.*/torch/__init__.py:1\)'),
    ('import os; os._exit(0)', 'ended with status 0'),
    ('import time; time.sleep(60)', 'hangs, stopped after 2 s'),
])
def test_a_torch_that_ends_the_process(tmp_path, text, told):
    package(tmp_path, 'torch', text)
    out = run_doctor(tmp_path, words=['--timeout', '2'])
    assert re.search(rf'^  torch +FAILS +{told}$', out, re.M)
    assert '$ unset PYTHONPATH' in out


@pytest.mark.skipif(installed_stack() is ONEDL, reason='is about versions of the upstream stack')
def test_an_mmcv_that_was_compiled_for_another_torch(tmp_path, monkeypatch, capsys):
    package(tmp_path, 'mmcv', '')
    package(tmp_path, 'mmcv._ext', "raise ImportError('mmcv/_ext.so: undefined symbol: _ZN3c10')")
    metadata(tmp_path, 'mmcv', '2.1.0')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, 'CHECKS', [check._replace(needs=()) for check in doctor.CHECKS if check.module == 'mmcv'])
    # Where pip would install, not on PYTHONPATH, from which pip could not take it away.
    package(tmp_path / 'hook', 'sitecustomize', f'import sys; sys.path.insert(0, {str(tmp_path)!r})')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'hook'))
    with pytest.raises(SystemExit) as exit:
        doctor.main([])
    assert exit.value.code is True
    out = capsys.readouterr().out
    assert 'mmcv.ops.nms: ImportError: mmcv/_ext.so: undefined symbol: _ZN3c10' in out
    assert re.search(r'\$ .* -m pip uninstall -y mmcv && .* install --force-reinstall --no-deps mmcv-lite==2\.1\.0\n', out)


@pytest.mark.parametrize('words', [['-c', 'import mmsimvit', 'mmsimvit.doctor'], ['-m', 'mmsimvit.train', 'mmsimvit_doctor']])
def test_whatever_else_imports_the_package_imports_all_of_it(tmp_path, words):
    package(tmp_path, 'torch', "raise OSError('no torch')")
    result = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True,
                            env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert result.stderr.endswith('OSError: no torch\n')


def test_a_whole_stack_has_no_conflicts():
    assert doctor.find_conflicts(environment(**WHOLE)) == []
    assert doctor.find_conflicts(environment(**FORKS)) == []
    for torchvision in ('0.29.2', '0.35.0'):
        later = {**FORKS, 'setuptools': '90.0', 'torch': '2.20.0', 'torchvision': torchvision}
        assert doctor.find_conflicts(environment(**later)) == []


@pytest.mark.parametrize(('module', 'command'), [
    ('mmcv', 'install --no-cache-dir onedl-mmcv==2.3.6'),
    ('mmseg', 'install onedl-mmsegmentation==1.4.2'), ('mmengine', 'install onedl-mmengine==0.10.12')])
def test_among_forks_a_fork_is_missing(module, command):
    findings = doctor.find_conflicts(environment(**{name: version for name, version in FORKS.items() if name != module}))
    assert any(command in finding.command for finding in findings)


@pytest.mark.parametrize(('changes', 'text', 'command'), [
    (dict(torch=None), 'torch is not installed', 'install torch==2.11.0 torchvision==0.26.0'),
    (dict(torch='2.5.1', torchvision='0.20.1'), 'refuses torch 2.5.1', 'install --force-reinstall torch==2.11.0 torch'),
    (dict(torchvision='0.25.0'), 'torchvision 0.25.0 is not made for torch 2.11.0', "torch==2.11.0 'torchvision<0.27'"),
    (dict(torch='2.13.0+cpu'), 'torchvision 0.26.0 is not made for torch 2.13.0+cpu',
     "torch==2.13.0 'torchvision<0.29' --index-url https://download.pytorch.org/whl/cpu"),
    (dict(torch='2.15.0', torchvision='0.29.0'), 'torchvision 0.29.0 is not made for torch 2.15.0', "'torchvision<0.31'"),
    (dict(torchvision=None), 'torchvision is not installed', "install torch==2.11.0 'torchvision<0.27'"),
    (dict(mmengine=None), 'mmengine is not installed', 'install mmengine==0.10.7'),
    (dict(setuptools='81.0.0'), 'this is 81.0.0', "install 'setuptools<81'"),
    (dict(setuptools=None), 'this is not installed', "install 'setuptools<81'"),
    (dict(mmcv=None), 'mmcv is not installed', 'pip install mmcv-lite==2.1.0'),
    (dict(mmcv='mmcv-full 1.7.2'), 'mmcv 1.7.2 is of the time before', 'uninstall -y mmcv-full && '),
    (dict(mmcv='2.2.0', mmseg=None), 'mmdet 3.3.0 refuses mmcv 2.2.0',
     '--force-reinstall --no-deps mmcv-lite==2.1.0'),
    (dict(mmcv='onedl-mmcv 2.3.0', mmdet=None), 'mmsegmentation 1.2.2 refuses mmcv 2.3.0', 'uninstall -y onedl-mmcv && '),
    (dict(mmdet='2.28.2'), 'mmsimvit is for MMDetection 3.x, this is 2.28.2', '--no-deps mmdet==3.3.0'),
    (dict(ftfy=None, regex=None), 'imports ftfy and regex', 'install ftfy regex'),
])
def test_conflicts(changes, text, command):
    versions = {module: version for module, version in {**WHOLE, **changes}.items() if version}
    wrong = [finding for finding in doctor.find_conflicts(environment(**versions)) if finding.is_wrong]
    assert text in wrong[0].text
    assert command in wrong[0].command
    assert shlex.split(wrong[0].command)[0] == sys.executable
    assert all(text in finding.text for finding in wrong)


def test_torch_and_mmengine_are_enough():
    alone = {module: WHOLE[module] for module in ('torch', 'numpy', 'setuptools', 'mmengine')}
    notes = doctor.find_conflicts(environment(**alone))
    assert [(note.text.split(' is ')[0], note.is_wrong) for note in notes] == [
        (name, False) for name in ('torchvision', 'mmcv', 'MMDetection', 'MMSegmentation', 'MMPreTrain')]
    assert [finding.text for finding in doctor.find_conflicts(environment(**alone, mmdet='3.3.0')) if finding.is_wrong] == [
        'torchvision is not installed', 'mmcv is not installed']


def test_a_missing_library_is_no_error():
    note, = doctor.find_conflicts(environment(**{module: version for module, version in WHOLE.items() if module != 'mmseg'}))
    assert not note.is_wrong
    assert note.text.startswith('MMSegmentation is not installed')
    assert note.command.endswith('-m pip install mmsegmentation==1.2.2')


def test_two_distributions_of_one_module(tmp_path, monkeypatch):
    metadata(tmp_path, 'mmcv', '2.1.0', modules=['mmcv'])
    metadata(tmp_path, 'onedl_mmcv', '2.3.0', modules=['mmcv'])
    look_in(monkeypatch, tmp_path, tmp_path)
    found, findings = doctor.find_installed()
    assert findings == []
    assert sorted(one.version for one in found['mmcv']) == ['2.1.0', '2.3.0']
    finding = doctor.find_conflicts({**environment(**WHOLE), **found})[0]
    assert finding.text.startswith('mmcv comes from mmcv 2.1.0 and onedl_mmcv 2.3.0')
    assert 'pip uninstall -y mmcv onedl_mmcv; ' in finding.command
    assert finding.command.endswith('mmcv-lite==2.1.0')


@pytest.mark.parametrize(('lite', 'told', 'is_wrong'), [
    ('2.1.0', 'mmcv and mmcv-lite 2.1.0 are both installed, and share their files', False),
    ('2.2.0', 'mmcv comes from mmcv 2.1.0 and mmcv-lite 2.2.0, of which one', True)])
def test_mmcv_and_mmcv_lite_together(lite, told, is_wrong):
    both = [Distribution('mmcv', '2.1.0', SITE), Distribution('mmcv-lite', lite, SITE)]
    finding, = doctor.find_conflicts({**environment(**WHOLE), 'mmcv': both})
    assert (finding.text.startswith(told), finding.is_wrong) == (True, is_wrong)


@pytest.mark.parametrize('text', ['', 'Metadata-Version: 2.1\nName: mmcv\n', '\0\0\0', 'Name: mmcv\nVersion:'])
def test_broken_metadata(tmp_path, monkeypatch, text):
    path = metadata(tmp_path, 'mmcv', '2.1.0', text)
    metadata(tmp_path, 'stranger', '1.0', text)
    (tmp_path / 'torch-2.11.0.dist-info').mkdir()
    look_in(monkeypatch, tmp_path)
    found, findings = doctor.find_installed()
    assert found == {}
    assert {finding.command for finding in findings} == {f'rm -r {path}', f'rm -r {tmp_path}/torch-2.11.0.dist-info'}


def test_a_module_without_metadata_is_found(tmp_path, monkeypatch):
    package(tmp_path, 'mmcv', '')
    (tmp_path / 'mmdet').mkdir()  # a folder of that name is no package
    look_in(monkeypatch, tmp_path)
    found, _ = doctor.find_installed()
    assert found == {'mmcv': [Distribution('mmcv', '', tmp_path)]}
    assert doctor.describe('mmcv', found['mmcv']) == [f'of unknown version in {tmp_path}']


@pytest.mark.parametrize(('title', 'reason', 'command'), [
    ('mmcv.ops.nms', 'ImportError: libGL.so.1: cannot open shared object file', 'sudo apt install libgl1 libglib2.0-0'),
    ('mmseg', "ModuleNotFoundError: No module named 'cv2'", 'pip install opencv-python'),
    ('mmseg', "ModuleNotFoundError: No module named 'prettytable'", 'pip install prettytable'),
    ('mmdet', "ModuleNotFoundError: No module named 'mmdet.core'", '--no-deps mmdet==3.3.0'),
    ('torchvision.ops.nms', 'RuntimeError: operator torchvision::nms does not exist', "torch==2.11.0 'torchvision<0.27'"),
    ('central attention', 'killed by signal 11; its last words: triton on cuda', 'export MMSIMVIT_BACKEND=composite'),
    ('central attention', 'RuntimeError: eager is off by 1 from the reference on cpu', 'torch==2.11.0'),
    ('SimViT-micro', 'ImportError: cut (/site-packages/mmengine/registry/__init__.py:3)', 'mmengine==0.10.7'),
])
def test_what_mends_a_failed_check(title, reason, command):
    check = next(check for check in doctor.CHECKS if check.title == title)
    assert command in doctor.mend(check, reason, environment(**WHOLE))


def test_a_gpu_that_torch_does_not_find(monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert doctor.judge_gpus([], '2.11.0, CUDA 13.0, no CUDA device') == []
    assert doctor.judge_gpus(['H200, 570.1'], '2.11.0, CUDA 13.0, NVIDIA H200 (9, 0)') == []
    note, = doctor.judge_gpus(['H200, 570.1'], '2.11.0+cpu, a build without CUDA, no CUDA device')
    wrong, = doctor.judge_gpus(['H200, 570.1'], '2.11.0, CUDA 13.0, no CUDA device')
    assert (note.is_wrong, wrong.is_wrong) == (False, True)
    assert wrong.command.endswith('--index-url https://download.pytorch.org/whl/cu126')


def crash() -> str:
    import os
    import sys
    print('the last line\n', file=sys.stderr)
    os.kill(os.getpid(), 11)


def test_the_last_words_of_a_crash_are_kept():
    assert doctor.run_check(Check('crash', 'torch', crash), 20) == (
        False, f'killed by signal 11, {signal.strsignal(11)}; its last words: the last line')
