"""Set up .venv with the OpenMMLab stack and this project; run again, it repairs or does nothing.

Needs Python with venv, a C++ compiler and a package index; pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS ...) are
honoured. The one package without wheels, mmcv, is compiled once and its wheel kept under $MMSIMVIT_CACHE
(~/.cache/mmsimvit by default), in a folder named by the versions of mmcv, torch and Python that it was built with.
"""
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
PYTHON = VENV / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
STAMP = VENV / 'mmsimvit-setup.json'
SUPPORTED = ((3, 10), (3, 12))
NEEDS_COMPILING = 'mmcv'


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
    torch_pair = [line for line in requirements if re.match(r'torch(vision)?==', line)]
    mmcv = next(line for line in requirements if re.match(rf'{NEEDS_COMPILING}==', line))
    step('1/4 build tools and PyTorch')
    pip('install', *[line for line in requirements if line.startswith('setuptools')], 'wheel', 'ninja', *torch_pair)
    step(f'2/4 {mmcv}')
    install_mmcv(mmcv)
    step('3/4 OpenMMLab and development tools')
    pip('install', *requirements)
    step('4/4 mmsimvit, editable')
    pip('install', '--no-deps', '--no-build-isolation', '--editable', str(ROOT))
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
    compiler = os.environ.get('CXX', 'c++')
    if shutil.which(compiler.split()[0]) is None:
        stop(f'no C++ compiler ({compiler} is not on PATH): install one (Debian, Ubuntu: apt install g++), '
             'or name it in CXX')
    header = subprocess.run([sys.executable, '-c', 'import sysconfig; print(sysconfig.get_path("include"))'],
                            capture_output=True, text=True, check=True).stdout.strip()
    if not Path(header, 'Python.h').exists():
        stop(f'no Python headers in {header}: install them (Debian, Ubuntu: apt install python3-dev)')


def make_venv() -> None:
    """Make .venv, or make it anew if its Python is another one or does not run."""
    if PYTHON.exists():
        probe = subprocess.run([PYTHON, '-c', 'import pip, platform; print(platform.python_version())'],
                               capture_output=True, text=True)
        if probe.stdout.strip() == platform.python_version():
            return
        print(f'{VENV.name} is broken or of another Python: it is made anew', flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, '-m', 'venv', VENV], check=True)


def read_requirements() -> list[str]:
    lines = (ROOT / 'requirements.txt').read_text().splitlines() + (ROOT / 'requirements-dev.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith(('#', '-r'))]


def install_mmcv(requirement: str) -> None:
    """Install mmcv with its ops: a cached wheel, one that the user's pip finds, or one compiled here."""
    if ops_work():
        return
    version = requirement.split('==')[1]
    torch = run_python('import torch; print(torch.__version__)').stdout.strip()
    python = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    key = f'mmcv{version}-torch{torch}-{python}-{sys.platform}-{platform.machine()}'
    cache = Path(os.environ.get('MMSIMVIT_CACHE', Path.home() / '.cache/mmsimvit')) / key
    for wheel in cache.glob('*.whl'):
        pip('install', '--no-deps', '--force-reinstall', str(wheel))
        if ops_work():
            return
        print(f'the cached {wheel.name} does not work here and is built again', flush=True)
    building = cache.with_name(f'{key}.{os.getpid()}')
    try:
        for source in ('--prefer-binary', '--no-binary=mmcv'):  # a wheel for another torch is found out and passed over
            shutil.rmtree(building, ignore_errors=True)
            build_wheel(requirement, source, building)
            wheel = next(building.glob('*.whl'))
            pip('install', '--no-deps', '--force-reinstall', str(wheel))
            if ops_work():
                break
        else:
            stop(f'{requirement} was built but its ops do not load: '
                 f'{run_python("import mmcv.ops").stderr.strip().splitlines()[-1]}')
        shutil.rmtree(cache, ignore_errors=True)
        building.rename(cache)  # whole or not at all
    finally:
        shutil.rmtree(building, ignore_errors=True)


def ops_work() -> bool:
    code = ('import torch; from mmcv.ops import nms; '
            'nms(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([1.]), 0.5)')
    return run_python(code).returncode == 0


def build_wheel(requirement: str, source: str, folder: Path) -> None:
    """``pip wheel`` with the compiler's progress on one line and all of its output in a log."""
    # Half the time goes into debug information, and pip's own cache does not know for which torch a wheel was built.
    flags = ' '.join(filter(None, [os.environ.get('CFLAGS'), '-g0']))
    env = dict(os.environ, CFLAGS=flags, MAX_JOBS=os.environ.get('MAX_JOBS', str(os.cpu_count())), MMCV_WITH_OPS='1',
               PATH=os.pathsep.join([str(PYTHON.parent), os.environ['PATH']]))
    command = [PYTHON, '-m', 'pip', 'wheel', '--verbose', '--no-deps', '--no-build-isolation', '--no-cache-dir', source,
               '--wheel-dir', folder, requirement]
    log = VENV / 'mmcv-build.log'
    started, lines, shown = time.time(), [], 0.0
    with open(log, 'w') as file, subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                                  text=True, errors='replace') as process:
        for line in process.stdout:
            file.write(line)
            lines = [*lines[-19:], line.rstrip()]
            progress = re.match(r'\s*\[(\d+)/(\d+)\]', line)
            if progress and (time.time() - shown > 5 or progress[1] == progress[2]):
                shown = time.time()
                print(f'  compiling its ops: {progress[1]} of {progress[2]} files, {shown - started:.0f} s', flush=True)
    if process.returncode:
        print('\n'.join(lines))
        stop(f'building {requirement} failed; all of its output is in {log}')


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([PYTHON, '-c', code], capture_output=True, text=True)


def pip(*arguments: str) -> None:
    result = subprocess.run([PYTHON, '-m', 'pip', *arguments])
    if result.returncode:
        stop(f'pip {arguments[0]} failed, see above; run the same command again to go on from here')


def step(title: str) -> None:
    print(f'-- set-up {title}', flush=True)


def stop(message: str) -> None:
    sys.exit(f'error: {message}')


if __name__ == '__main__':
    main()
