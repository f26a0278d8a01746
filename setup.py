from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    line = next(line for line in (ROOT / 'mmsimvit/__init__.py').read_text().splitlines()
                if line.startswith('__version__'))
    return line.split("'")[1]


def stack() -> list[str]:
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


setup(
    name='mmsimvit',
    version=version(),
    description='SimViT and sibling pyramid vision transformers for MMDetection, MMSegmentation and MMPreTrain',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmsimvit', 'mmsimvit.*']),
    python_requires='>=3.10',
    # The OpenMMLab packages stay out: their forks have other names and the same import names, so that a dependency on
    # one would overwrite the other in a user's environment.
    install_requires=['numpy', 'torch>=2.1'],
    extras_require={'stack': stack()},
)
