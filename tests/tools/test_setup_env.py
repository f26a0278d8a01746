"""The set-up script, as far as it can be run without installing anything."""
import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FILES = ('tools/setup_env.py', 'requirements.txt', 'requirements-dev.txt', 'setup.py', 'pyproject.toml')


@pytest.fixture
def clone(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def script(clone):
    spec = importlib.util.spec_from_file_location('setup_env', clone / 'tools/setup_env.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_missing_compiler_is_said_in_one_line(clone):
    result = subprocess.run([sys.executable, clone / 'tools/setup_env.py'], capture_output=True, text=True,
                            env={**os.environ, 'CXX': 'no-such-compiler'})
    assert result.returncode == 1
    assert result.stderr == ('error: no C++ compiler (no-such-compiler is not on PATH): install one (Debian, Ubuntu: '
                             'apt install g++; macOS: xcode-select --install), or name it in CXX\n')
    assert not (clone / '.venv').exists()


@pytest.mark.parametrize('version', [(3, 9), (3, 13)])
def test_another_python_is_refused(script, monkeypatch, version):
    monkeypatch.setattr(sys, 'version_info', (*version, 0))
    with pytest.raises(SystemExit, match='is not supported: use 3.10, 3.11 or 3.12'):
        script.check_machine()


def test_a_finished_set_up_is_left_alone(script, monkeypatch, capsys):
    script.PYTHON.parent.mkdir(parents=True)
    script.PYTHON.touch()
    script.STAMP.write_text(script.json.dumps(script.fingerprint()))
    monkeypatch.setattr(subprocess, 'run', None)  # any command would fail
    script.main()
    assert capsys.readouterr().out == 'environment .venv is ready\n'
    (script.ROOT / 'requirements.txt').write_text('torch==0\n')
    assert not script.is_done(script.fingerprint())


def test_a_package_that_is_not_whole_is_found_out(script, tmp_path):
    """As an interrupted pip leaves it: the metadata is there, a file of the package is not."""
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', script.VENV], check=True)
    site = next(script.VENV.glob('lib/python*/site-packages'))
    (site / 'pip').mkdir()
    (site / 'pip/__init__.py').touch()
    info = site / 'half-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: half\nVersion: 1.0\n')
    (info / 'RECORD').write_text('half.py,,\n__pycache__/half.cpython-311.pyc,,\nhalf-1.0.dist-info/METADATA,,\n')
    assert 'half is not whole' in script.run_python(script.PROBE).stderr
    (site / 'half.py').touch()
    assert script.run_python(script.PROBE).returncode == 0


def test_requirements_name_what_the_script_looks_for(script):
    requirements = script.read_requirements()
    assert [line for line in requirements if line.startswith(('torch==', 'torchvision==', 'mmcv=='))] == [
        'torch==2.11.0', 'torchvision==0.26.0', 'mmcv==2.1.0']
    assert {'pytest', 'ruff', 'setuptools<81'} <= set(requirements)
