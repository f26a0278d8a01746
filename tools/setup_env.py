"""Set up an environment with an OpenMMLab stack and this project; run again, it does nothing, or makes a broken one anew.

Needs Python with venv and a package index; pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CONSTRAINT ...) are honoured.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 10), (3, 13))
# The OpenMMLab packages of OpenMMLab, and the forks that others maintain under the same import names.
STACKS = {'upstream': 'requirements.txt', 'onedl': 'requirements-onedl.txt'}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--stack', choices=STACKS, default='upstream', help="OpenMMLab's own packages, or the maintained forks "
                        '(default: %(default)s)')
    parser.add_argument('--torch', metavar='VERSION', help='another torch than that of the requirements, such as 2.6.0')
    parser.add_argument('--ops', choices=['compiled'], help="compile mmcv's own operators: this takes minutes, a C++ compiler, "
                        'and for an NVIDIA GPU nvcc')
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', metavar='DIR', help='folder of the environment (.venv)')
    args = parser.parse_args(argv)
    check_python()
    set_up(args.venv.absolute(), read_requirements(args.stack, args.torch), args.ops == 'compiled')


def check_python() -> None:
    """End with one line if this Python will not do."""
    if not SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        stop(f'Python {platform.python_version()} is not supported: use 3.10 to 3.13, '
             'for example with make PYTHON=python3.11 ...')
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop('Python has no venv module: install it (Debian, Ubuntu: apt install python3-venv)')


def read_requirements(stack: str, torch: str | None = None) -> list[str]:
    """What is installed: the lines of a stack's file, with another torch where one is given, and what the tests need."""
    lines = [line for name in (STACKS[stack], 'requirements-dev.txt') for line in (ROOT / name).read_text().splitlines()
             if line and not line.startswith('#')]
    if torch is None:
        return lines
    version = re.fullmatch(r'2\.(\d+)\.\d+', torch)
    if version is None:
        stop(f'--torch takes a version such as 2.6.0, got {torch}')
    others = [line for line in lines if not line.startswith(('torch==', 'torchvision=='))]
    # torchvision 0.21 is for torch 2.6 and so on; from 0.29.1 on it is for later ones as well. pip finds the newest that is.
    return [f'torch=={torch}', f'torchvision<0.{int(version[1]) + 16}', *others]


def set_up(venv: Path, requirements: list[str], compiled: bool) -> None:
    """Make an environment, unless its stamp says that it is there and has all of this."""
    metadata = [(ROOT / name).read_text() for name in ('setup.py', 'pyproject.toml')]
    wanted = json.dumps([platform.python_version(), str(ROOT), requirements, compiled, metadata])
    python, stamp = venv / 'bin/python', venv / 'mmsimvit-setup.json'
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        print(f'environment {venv.name} is ready')
        return
    if venv.exists() and any(venv.iterdir()) and not (venv / 'pyvenv.cfg').exists():
        stop(f'{venv} is not empty, and no environment of Python: delete it, or name another folder with --venv')
    started = time.time()
    run(sys.executable, 'venv', '--clear', venv)  # an interrupted pip leaves packages that look whole to the next
    # Python writes the bytecode of what it imports; pip would of all that there is.
    install: list[str | Path] = [python, 'pip', 'install', '--no-compile']
    mmcv = next(line for line in requirements if re.match(r'(onedl-)?mmcv', line))
    check = 'import mmsimvit, mmcv.ops, mmdet.apis, mmseg.apis, mmpretrain.apis, pytest'
    if compiled:
        run(*install, *[line for line in requirements if line != mmcv], 'wheel', 'ninja', '--editable', ROOT)
        # Against this torch, which pip would hide, and of which its cache knows nothing.
        run(*install, '--verbose', '--no-build-isolation', '--no-cache-dir', '--force-reinstall', '--no-deps',
            mmcv.replace('mmcv-lite', 'mmcv'))
        check += ', mmcv._ext as ops; ops.__file__'
    else:
        run(*install, *requirements, '--editable', ROOT)
    imported = subprocess.run([python, '-I', '-c', check], capture_output=True, text=True)
    if imported.returncode:
        stop(f'all is installed but does not load: {imported.stderr.strip().splitlines()[-1]}')
    stamp.write_text(wanted)
    print(f'environment {venv.name} is ready after {time.time() - started:.0f} s', flush=True)


def run(python: str | Path, *words: str | Path) -> None:
    """Run a module, with the environment's ninja, and without the user's settings that have pip look or install elsewhere."""
    # setuptools takes CFLAGS in place of Python's own flags; debug information would double the time.
    env = {'CFLAGS': '-O2 -DNDEBUG -g0', 'MAX_JOBS': str(os.cpu_count()), **os.environ,
           'PATH': f'{Path(python).parent}{os.pathsep}{os.environ.get("PATH", os.defpath)}'}
    for name in ('PYTHONPATH', 'PIP_USER', 'PIP_TARGET'):
        env.pop(name, None)
    if subprocess.run([python, '-m', *words], env=env).returncode:
        stop(f'{words[0]} failed, see above; the same command tries it again')


def stop(message: str) -> NoReturn:
    sys.exit(f'error: {message}')


if __name__ == '__main__':
    main()
