"""Run mmsimvit's gpu_check; with --bundle FOLDER, where nothing but torch is installed, from a folder of wheels."""
import os
import subprocess
import sys
from pathlib import Path


def install(folder: str) -> None:
    """Install the wheels of ``tools/gpu_bundle.py`` beside this Python's packages, and start anew with them."""
    site = Path('work_dirs/gpu_site').absolute()
    wheels = sorted(map(str, Path(folder).glob('*.whl')))
    if not wheels:
        sys.exit(f'error: {folder} holds no wheels; tools/gpu_bundle.py collects them')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-index', '--no-deps', '--upgrade', '--target', site,
                    *wheels], check=True)
    path = os.pathsep.join([str(site), str(Path(__file__).resolve().parent.parent), os.environ.get('PYTHONPATH', '')])
    place = sys.argv.index('--bundle')
    words = sys.argv[:place] + sys.argv[place + 2:]
    os.execve(sys.executable, [sys.executable, *words], {**os.environ, 'PYTHONPATH': path})


if __name__ == '__main__':
    if '--bundle' in sys.argv[:-1]:
        install(sys.argv[sys.argv.index('--bundle') + 1])
    from mmsimvit.cli.gpu_check import main
    main()
