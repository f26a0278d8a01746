import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def version() -> str:
    line = next(line for line in (ROOT / 'mmsimvit/__init__.py').read_text(encoding='utf-8').splitlines()
                if line.startswith('__version__'))
    return line.split("'")[1]


class BuildWithMim(build_py):
    """The package; in its folder .mim, what mim looks for there: configs, tools and the index of models; and beside it a line
    that Python runs when it starts, for whoever imports a library, and with it MMCV's operators, before mmsimvit."""

    def run(self) -> None:
        super().run()
        start = 'mmsimvit_mmcv_ops.pth'
        if self.editable_mode:
            shutil.copy(ROOT / start, self.get_finalized_command('install').install_lib)
            return
        shutil.copy(ROOT / start, self.build_lib)
        target = Path(self.build_lib, 'mmsimvit/.mim')
        shutil.rmtree(target, ignore_errors=True)  # an earlier build's
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / 'model-index.yml', target)


setup(
    name='mmsimvit',
    version=version(),
    description='SimViT and sibling pyramid vision transformers for MMDetection, MMSegmentation and MMPreTrain',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    # Has an editable installation be a path, which a folder named mmsimvit cannot hide, as a clone would for whoever works
    # beside it. The price: tools, tests and configs can be imported there, too.
    package_dir={'': '.'},
    packages=find_packages(include=['mmsimvit', 'mmsimvit.*']),
    package_data={'mmsimvit': ['py.typed'], 'mmsimvit.compare': ['*.html']},  # so that type checkers look at the annotations
    cmdclass={'build_py': BuildWithMim},
    python_requires='>=3.10',
    # Nothing is required, so that nothing of a user's stack is replaced: torch wants the build that they chose, and the
    # OpenMMLab packages have forks of other names with the same import names.
    install_requires=[],
    # All of it, for an environment that has nothing yet: pip install "mmsimvit[stack]".
    extras_require={'stack': [line for line in (ROOT / 'requirements.txt').read_text(encoding='utf-8').splitlines()
                              if not line.startswith('#')]},
)
