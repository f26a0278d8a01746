"""The set-up script, as far as it can be run without installing anything."""
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile

import pytest

from tests.conftest import ROOT, load_tool

FILES = ('tools/setup_env.py', 'requirements.txt', 'requirements-onedl.txt', 'requirements-dev.txt', 'setup.py',
         'pyproject.toml')


@pytest.fixture
def clone(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def script(clone):
    return load_tool(clone / 'tools/setup_env.py')


@pytest.fixture
def setup(script):
    return script.Setup(script.ROOT / '.venv', script.read_requirements('upstream'))


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


def test_a_finished_set_up_is_left_alone(script, setup, monkeypatch, capsys):
    setup.python.parent.mkdir(parents=True)
    setup.python.touch()
    setup.stamp.write_text(json.dumps(setup.fingerprint()))
    monkeypatch.setattr(subprocess, 'run', None)  # any command would fail
    script.main([])
    assert capsys.readouterr().out == 'environment .venv is ready\n'
    (script.ROOT / 'requirements.txt').write_text('torch==0\nmmcv==2.1.0\n')
    assert not script.Setup(setup.venv, script.read_requirements('upstream')).is_done()
    (script.ROOT / 'requirements.txt').unlink()
    assert not script.Setup(setup.venv, script.read_requirements('onedl')).is_done()


def test_a_package_that_is_not_whole_is_found_out(script, setup):
    """As an interrupted pip leaves it: the metadata is there, a file of the package is not."""
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', setup.venv], check=True)
    site = next(setup.venv.glob('lib/python*/site-packages'))
    (site / 'pip').mkdir()
    (site / 'pip/__init__.py').touch()
    info = site / 'half-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: half\nVersion: 1.0\n')
    (info / 'RECORD').write_text('half.py,,\n__pycache__/half.cpython-311.pyc,,\nhalf-1.0.dist-info/METADATA,,\n')
    assert 'half is not whole' in setup.run_python(script.PROBE).stderr
    (site / 'half.py').touch()
    assert setup.run_python(script.PROBE).returncode == 0


@pytest.mark.parametrize(('stack', 'mmcv'), [('upstream', 'mmcv==2.1.0'), ('onedl', 'onedl-mmcv==2.3.6')])
def test_requirements_name_what_the_script_looks_for(script, stack, mmcv):
    requirements = script.read_requirements(stack)
    assert {'torch==2.11.0', 'torchvision==0.26.0', mmcv, 'pytest'} <= set(requirements)
    setup = script.Setup(script.ROOT, requirements)
    assert setup.mmcv == mmcv
    assert mmcv.split('==')[0] in script.PUBLISHED


def test_another_torch_comes_with_its_torchvision(script):
    usual, other = (script.read_requirements('upstream', torch) for torch in (None, '2.7.1'))
    assert other[:2] == ['torch==2.7.1', 'torchvision==0.22.1']
    assert set(usual) - set(other) == {'torch==2.11.0', 'torchvision==0.26.0'}
    with pytest.raises(SystemExit, match=r'--torch takes a version such as 2.6.0, got newest'):
        script.read_requirements('upstream', 'newest')


@pytest.fixture
def wheels(tmp_path):
    """A web page of wheels; gives the pattern of its addresses."""
    folder = tmp_path / 'wheels/cpu/torch2.11.0'
    folder.mkdir(parents=True)
    (folder / 'index.html').write_text('<a href="mmcv-2.1.0-py3-none-any.whl">mmcv-2.1.0-py3-none-any.whl</a>')
    with zipfile.ZipFile(folder / 'mmcv-2.1.0-py3-none-any.whl', 'w') as file:
        file.writestr('mmcv/__init__.py', '__version__ = "2.1.0"\n')
        file.writestr('mmcv-2.1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: mmcv\nVersion: 2.1.0\n')
        file.writestr('mmcv-2.1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        file.writestr('mmcv-2.1.0.dist-info/RECORD', 'mmcv/__init__.py,,\n')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / 'wheels')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f'http://127.0.0.1:{server.server_port}/{{build}}/torch{{torch}}/index.html'
        server.shutdown()


def test_pages_of_published_wheels(script, setup, monkeypatch):
    """One page serves all patch releases of a torch."""
    asked = []

    def refuse(page, timeout):
        asked.append(page)
        raise OSError('no network')

    monkeypatch.setattr(script.urllib.request, 'urlopen', refuse)
    monkeypatch.setattr(subprocess, 'run', lambda *_, **__: subprocess.CompletedProcess([], 1))
    forks = script.Setup(setup.venv, script.read_requirements('onedl'))
    assert not setup.fetch_wheel('2.4.1+cu121', setup.venv) and not forks.fetch_wheel('2.10.1+cu128', setup.venv)
    assert asked == ['https://download.openmmlab.com/mmcv/dist/cu121/torch2.4.0/index.html',
                     'https://mmwheels.onedl.ai/cu128-torch2100/simple/onedl-mmcv/index.html']


def test_a_published_wheel_for_this_torch_is_taken(script, setup, wheels, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(script, 'PUBLISHED', {'mmcv': wheels})
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    subprocess.run([sys.executable, '-m', 'venv', setup.venv], check=True)
    assert setup.fetch_wheel('2.11.0', tmp_path / 'there')
    assert setup.run_python('import mmcv; print(mmcv.__version__)').stdout == '2.1.0\n'
    assert not setup.ops_work()  # it has none, and is not left at that
    assert not setup.fetch_wheel('2.11.0+cu130', tmp_path / 'not there')
    assert 'no published wheels for torch 2.11.0+cu130: http://127.0.0.1' in capfd.readouterr().out


def test_mmcv_is_compiled_once_for_the_same_settings(script, setup, monkeypatch, tmp_path):
    """The second environment takes the kept wheel; another compiler flag, with a path in it, does not."""
    monkeypatch.setenv('MMSIMVIT_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('CFLAGS', raising=False)
    installed, built = [], []

    def build(folder):
        built.append(script.build_key())
        folder.mkdir(parents=True)
        (folder / 'mmcv.whl').touch()

    monkeypatch.setattr(setup, 'run_python', lambda code: subprocess.CompletedProcess([], 0, '2.11.0+cpu cpu -\n', ''))
    monkeypatch.setattr(setup, 'ops_work', lambda: bool(installed))
    monkeypatch.setattr(setup, 'pip', lambda *words: installed.append(words[-1]))
    monkeypatch.setattr(setup, 'fetch_wheel', lambda torch, folder: False)
    monkeypatch.setattr(setup, 'build_wheel', build)
    for flags in (None, None, '-O3 -isystem /opt/include'):
        if flags:
            monkeypatch.setenv('CFLAGS', flags)
        installed.clear()
        setup.install_mmcv()
    assert len(built) == 2
    assert {path.name.rpartition('-')[2] for path in (tmp_path / 'cache').iterdir()} == set(built)
