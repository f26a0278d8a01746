"""The set-up script, as far as it can be run without installing anything."""
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, load_tool

FILES = ('tools/setup_env.py', 'requirements.txt', 'requirements-onedl.txt', 'requirements-dev.txt', 'setup.py',
         'pyproject.toml')


@pytest.fixture
def script(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return load_tool(tmp_path / 'tools/setup_env.py')


@pytest.fixture
def commands(script, monkeypatch):
    """What is run, in words; nothing of it is. A command that has one of the ``fails`` in it fails."""
    class Commands(list):
        fails = ()

        def __call__(self, command, **_):
            self.append([str(word) for word in command])
            if 'venv' in self[-1]:
                (script.ROOT / '.venv/bin').mkdir(parents=True, exist_ok=True)
                for name in ('bin/python', 'pyvenv.cfg'):
                    (script.ROOT / '.venv' / name).touch()
            failed = any(word in self[-1] for word in self.fails)
            return subprocess.CompletedProcess(command, failed, '', 'Traceback\nImportError: libGL.so.1')

    commands = Commands()
    monkeypatch.setattr(subprocess, 'run', commands)
    return commands


def test_one_pip_command_lets_wheels_be_installed_and_forks_be_built_without_torch(script, commands):
    """mmcv compiles its operators where its build sees torch, that is without pip's build isolation."""
    for stack in ('upstream', 'onedl'):
        script.main(['--stack', stack])
        venv, pip, check = commands
        assert venv[2:] == ['venv', '--clear', f'{script.ROOT}/.venv']
        assert pip[1:5] == ['-m', 'pip', 'install', '--no-compile']
        assert pip[5:] == [*script.read_requirements(stack), '--editable', str(script.ROOT)]
        assert ('mmcv-lite==2.1.0' if stack == 'upstream' else 'onedl-mmcv==2.3.6') in pip
        assert 'import mmsimvit, mmcv.ops, ' in check[-1]
        commands.clear()


@pytest.mark.parametrize(('stack', 'lite', 'mmcv'), [
    ('upstream', 'mmcv-lite==2.1.0', 'mmcv==2.1.0'), ('onedl', 'onedl-mmcv==2.3.6', 'onedl-mmcv==2.3.6')])
def test_compiled_operators_are_built_last_against_the_installed_torch(script, commands, stack, lite, mmcv):
    script.main(['--stack', stack, '--ops', 'compiled'])
    _, first, second, check = commands
    assert {'torch==2.11.0', 'ninja'} <= set(first) and not {lite, mmcv} & set(first)
    assert second[-1] == mmcv
    assert {'--no-build-isolation', '--no-cache-dir'} <= set(second)
    assert check[-1].endswith('mmcv._ext as ops; ops.__file__')  # which mmsimvit's has not


def test_a_finished_set_up_is_left_alone_and_a_changed_one_made_anew(script, commands, capsys):
    script.main([])
    capsys.readouterr()
    commands.clear()
    script.main([])
    assert capsys.readouterr().out == 'environment .venv is ready\n'
    assert commands == []
    for change in (['--torch', '2.7.1'], ['--ops', 'compiled'], []):
        script.main(change)
        assert '--clear' in commands[0]
        commands.clear()


@pytest.mark.parametrize(('failing', 'message'), [
    ('pip', 'pip failed, see above; the same command tries it again'),
    ('-I', 'all is installed but does not load: ImportError: libGL.so.1')])
def test_what_failed_is_done_again(script, commands, failing, message):
    script.main([])
    (script.ROOT / 'setup.py').write_text('# other requirements of its own')
    commands.fails = [failing]
    with pytest.raises(SystemExit, match=message):
        script.main([])
    commands.clear()
    commands.fails = ()
    script.main([])
    assert '--clear' in commands[0]


def test_a_folder_of_other_things_is_not_cleared(script, commands, tmp_path):
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home/letter.txt').touch()
    with pytest.raises(SystemExit, match='home is not empty, and no environment of Python: delete it, or name another'):
        script.main(['--venv', str(tmp_path / 'home')])
    assert commands == []


@pytest.mark.parametrize('version', [(3, 9), (3, 14)])
def test_another_python_is_refused(script, monkeypatch, version):
    monkeypatch.setattr(sys, 'version_info', (*version, 0))
    with pytest.raises(SystemExit, match=r'is not supported: use 3.10 to 3.13, for example with make PYTHON=python3.11'):
        script.main([])


def test_a_python_without_venv_is_told_how_to_get_it(script, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ensurepip', None)  # as Debian has it
    with pytest.raises(SystemExit, match=r'no venv module: install it \(Debian, Ubuntu: apt install python3-venv\)'):
        script.main([])


def test_another_torch_comes_with_its_torchvision(script):
    usual, other = (script.read_requirements('upstream', torch) for torch in (None, '2.15.0'))
    assert other[:2] == ['torch==2.15.0', 'torchvision<0.31']
    assert set(usual) - set(other) == {'torch==2.11.0', 'torchvision==0.26.0'}
    with pytest.raises(SystemExit, match=r'--torch takes a version such as 2.6.0, got newest'):
        script.read_requirements('upstream', 'newest')
