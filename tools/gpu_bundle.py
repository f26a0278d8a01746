"""Collect the wheels that a machine with a GPU and without a package index lacks, for tools/gpu_check.py --bundle."""
import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Binary wheels of other platforms than this one's are found by their whole names alone.
PLATFORMS = [*(f'manylinux_2_{number}_x86_64' for number in range(39, 16, -1)), 'manylinux2014_x86_64', 'manylinux1_x86_64']


def main(argv: list[str] | None = None) -> None:
    """Resolve what the stack needs on that machine, and download what is not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, help='where the wheels go')
    parser.add_argument('--python', default='3.12', help='version on that machine (default: %(default)s)')
    parser.add_argument('--have', type=Path, metavar='FILE', help='what `pip freeze` printed there; torch, torchvision '
                        'and what these need are taken to be there in any case')
    args = parser.parse_args(argv)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    target = ['--only-binary=:all:', '--python-version', args.python, '--implementation', 'cp',
              *(word for name in PLATFORMS for word in ('--platform', name))]

    def resolve(*wanted: str) -> dict[str, str]:
        command = [*pip, 'install', '--quiet', '--dry-run', '--ignore-installed', '--report', '-', '--target', 'nowhere']
        report = subprocess.run([*command, *target, *wanted], check=True, stdout=subprocess.PIPE, text=True).stdout
        found = (part['metadata'] for part in json.loads(report[report.index('{'):])['install'])
        return {normal(part['name']): part['version'] for part in found}

    requirements = str(ROOT / 'requirements.txt')
    torch = [line for line in Path(requirements).read_text().splitlines() if line.startswith('torch')]
    have = {*resolve(*torch)}
    if args.have:
        have |= {normal(re.split(r'[=@ ]', line)[0]) for line in args.have.read_text().splitlines() if line.strip()}
    missing = {name: version for name, version in resolve('-r', requirements).items() if name not in have}
    # mmengine asks for opencv-python, whose other form needs no graphics library of the system and is the same module.
    if missing.pop('opencv-python', None) and 'opencv-python-headless' not in have:
        missing['opencv-python-headless'] = ''
    missing.setdefault('setuptools', '80.9.0')  # a newer one has no pkg_resources, which mmengine imports
    args.folder.mkdir(parents=True, exist_ok=True)
    wanted = [f'{name}=={version}' if version else name for name, version in missing.items()]
    subprocess.run([*pip, 'download', '--quiet', '--no-deps', '--dest', args.folder, *target, *wanted], check=True)
    wheels = list(args.folder.glob('*.whl'))
    print(f'{len(wheels)} wheels, {sum(wheel.stat().st_size for wheel in wheels) / 2**20:.0f} MiB in {args.folder}; there: '
          f'python tools/gpu_check.py --bundle {args.folder}')


def normal(name: str) -> str:
    """The name of a distribution as pip compares it."""
    return re.sub(r'[-_.]+', '-', name).lower()


if __name__ == '__main__':
    main()
