"""Set up an environment with an OpenMMLab stack and this project; run again, it repairs or does nothing.

Needs Python with venv, a C++ compiler and a package index; pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS ...) are
honoured. mmcv is taken from its publishers' wheels where there is one for this torch and its ops load. Elsewhere it is compiled
once and its wheel kept under $MMSIMVIT_CACHE (~/.cache/mmsimvit by default), in a folder named by the versions of mmcv, torch
and Python that it was built with, and by the settings of its compilation.
"""
from __future__ import annotations

import argparse
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
import urllib.error
import urllib.request
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 10), (3, 12))
# The OpenMMLab packages of OpenMMLab, and the forks that others maintain under the same import names.
STACKS = {'upstream': 'requirements.txt', 'onedl': 'requirements-onedl.txt'}
# Pages of wheels that mmcv's publishers built, by the minor release of torch (2.8.0 for 2.8.1) and its build (cpu, cu126 ...):
# those that openmim 0.3.9 and onedl-mim 0.5.1 look at.
PUBLISHED = {'mmcv': 'https://download.openmmlab.com/mmcv/dist/{build}/torch{torch}/index.html',
             'onedl-mmcv': 'https://mmwheels.onedl.ai/{build}-torch{digits}/simple/onedl-mmcv/index.html'}
# What else mmcv is compiled by, beside CFLAGS.
BUILD_SETTINGS = ('CC', 'CXX', 'CXXFLAGS', 'CPPFLAGS', 'LDFLAGS', 'FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST', 'MMCV_CUDA_ARGS')
# An installation that was cut leaves packages of which pip believes that they are there. From Python 3.12 on, package.files is
# without what is missing.
PROBE = '''
import csv, importlib.metadata, pip, platform, sys
for package in importlib.metadata.distributions():
    files = [row[0] for row in csv.reader((package.read_text('RECORD') or '').splitlines()) if row]
    if not files or not all(package.locate_file(file).exists() for file in files if not file.endswith('.pyc')):
        sys.exit(f'{package.name} is not whole')
print(platform.python_version())
'''


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--stack', choices=STACKS, default='upstream', help="OpenMMLab's own packages, or the maintained forks "
                        '(default: %(default)s)')
    parser.add_argument('--torch', metavar='VERSION', help='another torch than that of the requirements, such as 2.6.0')
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', metavar='DIR', help='folder of the environment (.venv)')
    args = parser.parse_args(argv)
    Setup(args.venv.absolute(), read_requirements(args.stack, args.torch)).run()


def read_requirements(stack: str, torch: str | None = None) -> list[str]:
    """What is installed: the lines of a stack's file, with another torch where one is given, and what the tests need."""
    lines = [line for name in (STACKS[stack], 'requirements-dev.txt') for line in (ROOT / name).read_text().splitlines()
             if line and not line.startswith('#')]
    if torch is None:
        return lines
    version = re.fullmatch(r'2\.(\d+)\.(\d+)', torch)
    if version is None:
        stop(f'--torch takes a version such as 2.6.0, got {torch}')
    others = [line for line in lines if not line.startswith(('torch==', 'torchvision=='))]
    return [f'torch=={torch}', f'torchvision==0.{int(version[1]) + 15}.{version[2]}', *others]


class Setup:
    """Of one environment.

    Attributes:
        venv: its folder.
        python: its interpreter.
        stamp: the file that says what is in it, once all is.
        requirements: what is installed in it, mmcv last and by itself.
    """

    def __init__(self, venv: Path, requirements: list[str]) -> None:
        self.venv = venv
        self.python = venv / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
        self.stamp = venv / 'mmsimvit-setup.json'
        self.requirements = requirements
        self.mmcv = next(line for line in requirements if re.match(r'(onedl-)?mmcv==', line))

    def run(self) -> None:
        if self.is_done():
            print(f'environment {self.venv.name} is ready')
            return
        check_machine()
        started = time.time()
        self.make_venv()
        self.stamp.unlink(missing_ok=True)
        step('1/4 PyTorch and build tools')
        self.pip('install', *[line for line in self.requirements if line.startswith(('setuptools', 'torch'))], 'wheel', 'ninja')
        step('2/4 OpenMMLab and development tools')
        self.pip('install', *[line for line in self.requirements if line != self.mmcv])
        step(f'3/4 {self.mmcv}')
        self.install_mmcv()
        step('4/4 mmsimvit, editable')
        self.pip('install', '--no-deps', '--no-build-isolation', '--editable', str(ROOT))
        imported = self.run_python('import mmcv.ops, mmdet.apis, mmseg.apis, mmpretrain.apis, mmsimvit, pytest')
        if imported.returncode:
            stop(f'all is installed but does not load: {last_line(imported.stderr)}')
        self.stamp.write_text(json.dumps(self.fingerprint()))
        print(f'environment {self.venv.name} is ready after {time.time() - started:.0f} s', flush=True)

    def fingerprint(self) -> dict:
        """What the environment depends on."""
        metadata = b''.join((ROOT / name).read_bytes() for name in ('setup.py', 'pyproject.toml'))
        return dict(python=platform.python_version(), root=str(ROOT), requirements=self.requirements,
                    metadata=hashlib.sha256(metadata).hexdigest())

    def is_done(self) -> bool:
        try:
            return json.loads(self.stamp.read_text()) == self.fingerprint() and self.python.exists()
        except (OSError, ValueError):
            return False

    def make_venv(self) -> None:
        """Make the environment; anew if it does not run, is of another Python, or holds a package that is not whole."""
        if self.python.exists():
            probe = self.run_python(PROBE)
            if probe.returncode == 0 and probe.stdout.strip() == platform.python_version():
                return
            reason = last_line(probe.stderr) or f'it is of Python {probe.stdout.strip()}'
            print(f'{self.venv.name} is made anew: {reason}', flush=True)
        shutil.rmtree(self.venv, ignore_errors=True)
        subprocess.run([sys.executable, '-m', 'venv', self.venv], check=True)

    def install_mmcv(self) -> None:
        """Install mmcv with its ops: a cached wheel, one that its publishers or the user's pip have, or one compiled here."""
        if self.ops_work():
            return
        opencv = self.run_python('import cv2')
        if opencv.returncode:
            stop(f'opencv, which mmcv needs, does not load: {last_line(opencv.stderr)} (Debian, Ubuntu: apt install libgl1 '
                 'libglib2.0-0)')
        probe = self.run_python('import torch; from torch.utils.cpp_extension import CUDA_HOME; '
                                'print(torch.__version__, "cuda" if torch.cuda.is_available() else "cpu", CUDA_HOME or "-")')
        if probe.returncode:
            stop(f'torch does not load: {last_line(probe.stderr)}')
        torch, device, cuda_home = probe.stdout.strip().split(maxsplit=2)
        python = f'cp{sys.version_info[0]}{sys.version_info[1]}'
        key = f'{self.mmcv.replace("==", "")}-torch{torch}-{device}-{python}-{sys.platform}-{platform.machine()}-{build_key()}'
        cache = Path(os.environ.get('MMSIMVIT_CACHE', Path.home() / '.cache/mmsimvit')) / key
        for wheel in cache.glob('*.whl'):
            self.pip('install', '--no-deps', '--force-reinstall', str(wheel))
            if self.ops_work():
                return
            print(f'the cached {wheel.name} does not work here and is built again', flush=True)
            shutil.rmtree(cache)
        building = cache.with_name(f'{key}.{os.getpid()}')
        try:
            ready = self.fetch_wheel(torch, building) and self.ops_work()
            if not ready:
                if device == 'cuda' and cuda_home == '-':
                    stop('a GPU was found, but no CUDA compiler (nvcc) to build the ops of mmcv for it: install the CUDA '
                         f'toolkit of torch {torch}, or set CUDA_VISIBLE_DEVICES= (empty) to build for the CPU alone')
                shutil.rmtree(building, ignore_errors=True)
                self.build_wheel(building)
                self.pip('install', '--no-deps', '--force-reinstall', str(next(building.glob('*.whl'))))
                if not self.ops_work():
                    problem = last_line(self.run_python('import mmcv.ops').stderr)
                    stop(f'{self.mmcv} was built but its ops do not load: {problem}')
            if not cache.exists():  # whole or not at all, and another process may have been faster
                building.rename(cache)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def ops_work(self) -> bool:
        """Whether this version of mmcv is installed, and its compiled code runs."""
        code = (f'import mmcv, torch; assert mmcv.__version__ == {self.mmcv.split("==")[1]!r}; '
                'from mmcv.ops import nms; device = "cuda" if torch.cuda.is_available() else "cpu"; '
                'nms(torch.tensor([[0., 0., 1., 1.]], device=device), torch.tensor([1.], device=device), 0.5)')
        return self.run_python(code).returncode == 0

    def fetch_wheel(self, torch: str, folder: Path) -> bool:
        """Download and install a wheel of mmcv that somebody built, if there is one; it may be for another torch.

        Args:
            torch: the version of torch, such as 2.11.0+cu130.
            folder: where the wheel goes.
        """
        version, _, build = torch.partition('+')
        minor = '.'.join([*version.split('.')[:2], '0'])
        page = PUBLISHED[self.mmcv.split('==')[0]].format(torch=minor, digits=minor.replace('.', ''), build=build or 'cpu')
        try:  # pip itself would try for minutes
            urllib.request.urlopen(page, timeout=10).close()
            links = ['--find-links', page]
        except (urllib.error.URLError, OSError) as error:
            print(f'  no published wheels for torch {torch}: {page} ({error})', flush=True)
            links = []
        command = [str(self.python), '-m', 'pip', 'download', '--no-deps', '--no-cache-dir', '--only-binary=:all:',
                   '--dest', str(folder), *links, self.mmcv]
        found = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
        if found.returncode:
            return False
        wheel = next(folder.glob('*.whl'))
        print(f'  trying {wheel.name}', flush=True)
        self.pip('install', '--no-deps', '--force-reinstall', str(wheel))
        return True

    def build_wheel(self, folder: Path) -> None:
        """``pip wheel`` with the compiler's progress on a line and all of its output in a log."""
        # pip's own cache does not know for which torch a wheel was built.
        jobs = os.environ.get('MAX_JOBS', str(os.cpu_count()))
        env = dict(clean_environment(), CFLAGS=compiler_flags(), MAX_JOBS=jobs, MMCV_WITH_OPS='1',
                   PATH=os.pathsep.join([str(self.python.parent), os.environ['PATH']]))
        command = [str(self.python), '-m', 'pip', 'wheel', '--verbose', '--no-deps', '--no-build-isolation', '--no-cache-dir',
                   f'--no-binary={self.mmcv.split("==")[0]}', '--wheel-dir', str(folder), self.mmcv]
        log = self.venv / 'mmcv-build.log'
        started, last, shown = time.time(), '', 0.0
        with open(log, 'w') as file, subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                                      text=True, errors='replace') as process:
            for line in process.stdout or ():
                file.write(line)
                last = line.strip() or last
                progress = re.match(r'\s*\[(\d+)/(\d+)\]', line)
                if progress and (time.time() - shown > 5 or progress[1] == progress[2]):
                    shown = time.time()
                    print(f'  compiling its ops: {progress[1]} of {progress[2]} files, {shown - started:.0f} s', flush=True)
        if process.returncode:
            stop(f'building {self.mmcv} failed ({last}); all of its output is in {log}')

    def run_python(self, code: str) -> subprocess.CompletedProcess:
        """Run code in the environment, with nothing of this folder or PYTHONPATH in its way."""
        return subprocess.run([self.python, '-I', '-c', code], capture_output=True, text=True)

    def pip(self, *arguments: str) -> None:
        result = subprocess.run([self.python, '-m', 'pip', *arguments], env=clean_environment())
        if result.returncode:
            stop(f'pip {arguments[0]} failed, see above; run the same command again to go on from here')


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


def compiler_flags() -> str:
    """Of mmcv: without debug information, which would take half of the time and nearly all of the file.

    setuptools takes CFLAGS in place of Python's own flags, so that without -O here nothing would be optimised.
    """
    return os.environ.get('CFLAGS', '-O2 -DNDEBUG') + ' -g0'


def build_key() -> str:
    """Eight digits that stand for the settings of mmcv's compilation, which may hold paths."""
    settings = {name: os.environ[name] for name in BUILD_SETTINGS if name in os.environ}
    return hashlib.sha256(json.dumps([compiler_flags(), settings]).encode()).hexdigest()[:8]


def clean_environment() -> dict:
    """The user's environment without what would let pip look at, or install to, other places than the environment."""
    return {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'PIP_USER', 'PIP_TARGET')}


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ''


def step(title: str) -> None:
    print(f'-- set-up {title}', flush=True)


def stop(message: str) -> NoReturn:
    sys.exit(f'error: {message}')


if __name__ == '__main__':
    main()
