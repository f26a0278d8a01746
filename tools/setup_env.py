"""Set up .venv with the OpenMMLab stack and this project; run again, it repairs or does nothing.

Needs Python with venv, a C++ compiler and a package index; pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS ...) are
honoured. The one package without wheels, mmcv, is compiled once and its wheel kept under $MMSIMVIT_CACHE
(~/.cache/mmsimvit by default), in a folder named by the versions of mmcv, torch and Python that it was built with.
"""
from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
PYTHON = VENV / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
STAMP = VENV / 'mmsimvit-setup.json'
SUPPORTED = ((3, 10), (3, 12))
# An installation that was cut leaves packages of which pip believes that they are there.
PROBE = '''
import importlib.metadata, pip, platform, sys
for package in importlib.metadata.distributions():
    if not package.files or not all(package.locate_file(file).exists() for file in package.files if file.suffix != '.pyc'):
        sys.exit(f'{package.name} is not whole')
print(platform.python_version())
'''


def main() -> None:
    wanted = fingerprint()
    if is_done(wanted):
        print(f'environment {VENV.name} is ready')
        return
    check_machine()
    started = time.time()
    make_venv()
    STAMP.unlink(missing_ok=True)
    requirements = read_requirements()
    mmcv = next(line for line in requirements if line.startswith('mmcv=='))
    step('1/4 PyTorch and build tools')
    pip('install', *[line for line in requirements if line.startswith(('setuptools', 'torch'))], 'wheel', 'ninja')
    step('2/4 OpenMMLab and development tools')
    pip('install', *[line for line in requirements if line != mmcv])
    step(f'3/4 {mmcv}')
    install_mmcv(mmcv)
    step('4/4 mmsimvit, editable')
    pip('install', '--no-deps', '--no-build-isolation', '--editable', str(ROOT))
    imported = run_python('import mmcv.ops, mmdet.apis, mmseg.apis, mmpretrain.apis, mmsimvit, pytest')
    if imported.returncode:
        stop(f'all is installed but does not load: {last_line(imported.stderr)}')
    STAMP.write_text(json.dumps(wanted))
    print(f'environment {VENV.name} is ready after {time.time() - started:.0f} s', flush=True)


def fingerprint() -> dict:
    """What the environment depends on."""
    files = ('requirements.txt', 'requirements-dev.txt', 'setup.py', 'pyproject.toml')
    texts = b''.join((ROOT / name).read_bytes() for name in files)
    return dict(python=platform.python_version(), root=str(ROOT), requirements=hashlib.sha256(texts).hexdigest())


def is_done(wanted: dict) -> bool:
    try:
        return json.loads(STAMP.read_text()) == wanted and PYTHON.exists()
    except (OSError, ValueError):
        return False


def check_machine() -> None:
    """End with one line if something is missing that no package brings."""
    if not SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        stop(f'Python {platform.python_version()} is not supported: use 3.10, 3.11 or 3.12, '
             'for example with make PYTHON=python3.11 ...')
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop('Python has no venv module: install it (Debian, Ubuntu: apt install python3-venv)')
    compiler = os.environ.get('CXX', 'c++').split()
    if shutil.which(compiler[0]) is None:
        stop(f'no C++ compiler ({compiler[0]} is not on PATH): install one (Debian, Ubuntu: apt install g++; '
             'macOS: xcode-select --install), or name it in CXX')
    header = Path(sysconfig.get_path('include'), 'Python.h')
    if not header.exists():
        stop(f'no Python headers ({header} is missing): install them (Debian, Ubuntu: apt install python3-dev)')
    trial = subprocess.run([*compiler, '-x', 'c++', '-fsyntax-only', '-'], input='#include <vector>\n', capture_output=True,
                           text=True)
    if trial.returncode:
        stop(f'the C++ compiler {compiler[0]} does not work: {last_line(trial.stderr)}')


def make_venv() -> None:
    """Make .venv, or make it anew if it does not run, is of another Python, or holds a package that is not whole."""
    if PYTHON.exists():
        probe = run_python(PROBE)
        if probe.returncode == 0 and probe.stdout.strip() == platform.python_version():
            return
        reason = last_line(probe.stderr) or f'it is of Python {probe.stdout.strip()}'
        print(f'{VENV.name} is made anew: {reason}', flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, '-m', 'venv', VENV], check=True)


def read_requirements() -> list[str]:
    lines = (ROOT / 'requirements.txt').read_text().splitlines() + (ROOT / 'requirements-dev.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith(('#', '-r'))]


def install_mmcv(requirement: str) -> None:
    """Install mmcv with its ops: a cached wheel, one that the user's pip finds, or one compiled here."""
    if ops_work(requirement):
        return
    opencv = run_python('import cv2')
    if opencv.returncode:
        stop(f'opencv, which mmcv needs, does not load: {last_line(opencv.stderr)} (Debian, Ubuntu: apt install libgl1 '
             'libglib2.0-0)')
    probe = run_python('import torch; from torch.utils.cpp_extension import CUDA_HOME; '
                       'print(torch.__version__, "cuda" if torch.cuda.is_available() else "cpu", CUDA_HOME or "-")')
    if probe.returncode:
        stop(f'torch does not load: {last_line(probe.stderr)}')
    torch, device, cuda_home = probe.stdout.strip().split(maxsplit=2)
    if device == 'cuda' and cuda_home == '-':
        stop('a GPU was found, but no CUDA compiler (nvcc) to build the ops of mmcv for it: install the CUDA toolkit of '
             f'torch {torch}, or set CUDA_VISIBLE_DEVICES= (empty) to build for the CPU alone')
    python = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    key = f'{requirement.replace("==", "")}-torch{torch}-{device}-{python}-{sys.platform}-{platform.machine()}'
    cache = Path(os.environ.get('MMSIMVIT_CACHE', Path.home() / '.cache/mmsimvit')) / key
    for wheel in cache.glob('*.whl'):
        pip('install', '--no-deps', '--force-reinstall', str(wheel))
        if ops_work(requirement):
            return
        print(f'the cached {wheel.name} does not work here and is built again', flush=True)
        shutil.rmtree(cache)
    building = cache.with_name(f'{key}.{os.getpid()}')
    try:
        compiled = build_wheel(requirement, '--prefer-binary', building)
        pip('install', '--no-deps', '--force-reinstall', str(next(building.glob('*.whl'))))
        if not compiled and not ops_work(requirement):  # a wheel that was built with another torch
            shutil.rmtree(building)
            build_wheel(requirement, '--no-binary=mmcv', building)
            pip('install', '--no-deps', '--force-reinstall', str(next(building.glob('*.whl'))))
        if not ops_work(requirement):
            stop(f'{requirement} was built but its ops do not load: {last_line(run_python("import mmcv.ops").stderr)}')
        if not cache.exists():  # whole or not at all, and another process may have been faster
            building.rename(cache)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def ops_work(requirement: str) -> bool:
    """Whether this version of mmcv is installed, and its compiled code runs."""
    code = (f'import mmcv, torch; assert mmcv.__version__ == {requirement.split("==")[1]!r}; '
            'from mmcv.ops import nms; device = "cuda" if torch.cuda.is_available() else "cpu"; '
            'nms(torch.tensor([[0., 0., 1., 1.]], device=device), torch.tensor([1.], device=device), 0.5)')
    return run_python(code).returncode == 0


def build_wheel(requirement: str, source: str, folder: Path) -> bool:
    """``pip wheel`` with the compiler's progress on a line and all of its output in a log; whether it compiled."""
    # Half the time goes into debug information, and pip's own cache does not know for which torch a wheel was built.
    flags = ' '.join(filter(None, [os.environ.get('CFLAGS'), '-g0']))
    env = dict(clean_environment(), CFLAGS=flags, MAX_JOBS=os.environ.get('MAX_JOBS', str(os.cpu_count())), MMCV_WITH_OPS='1',
               PATH=os.pathsep.join([str(PYTHON.parent), os.environ['PATH']]))
    command = [str(PYTHON), '-m', 'pip', 'wheel', '--verbose', '--no-deps', '--no-build-isolation', '--no-cache-dir', source,
               '--wheel-dir', str(folder), requirement]
    log = VENV / 'mmcv-build.log'
    started, last, shown, compiled = time.time(), '', 0.0, False
    with open(log, 'w') as file, subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                                  text=True, errors='replace') as process:
        for line in process.stdout or ():
            file.write(line)
            last = line.strip() or last
            compiled = compiled or 'Building wheel' in line
            progress = re.match(r'\s*\[(\d+)/(\d+)\]', line)
            if progress and (time.time() - shown > 5 or progress[1] == progress[2]):
                shown = time.time()
                print(f'  compiling its ops: {progress[1]} of {progress[2]} files, {shown - started:.0f} s', flush=True)
    if process.returncode:
        stop(f'building {requirement} failed ({last}); all of its output is in {log}')
    return compiled


def run_python(code: str) -> subprocess.CompletedProcess:
    """Run code in the environment, with nothing of this folder or PYTHONPATH in its way."""
    return subprocess.run([PYTHON, '-I', '-c', code], capture_output=True, text=True)


def clean_environment() -> dict:
    """The user's environment without what would let pip look at, or install to, other places than .venv."""
    return {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'PIP_USER', 'PIP_TARGET')}


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ''


def pip(*arguments: str) -> None:
    result = subprocess.run([PYTHON, '-m', 'pip', *arguments], env=clean_environment())
    if result.returncode:
        stop(f'pip {arguments[0]} failed, see above; run the same command again to go on from here')


def step(title: str) -> None:
    print(f'-- set-up {title}', flush=True)


def stop(message: str) -> None:
    sys.exit(f'error: {message}')


if __name__ == '__main__':
    main()
