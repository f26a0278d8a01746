"""The commands and the code of README.md and docs/ run as they stand there, page by page, in order.

What trains or reads the generated data set does so with a small one, and the benchmark with few rounds: the ``python`` that
the pages call adds these options. A block that cannot run has a comment before it, ``<!-- not run: why -->``; a fragment of a
config has ``<!-- a fragment of: NAME -->``, and is read as a child of that config whose model and optimizer are built.

Not part of the usual run, since it takes minutes: ``python -m pytest -m pages``.
"""
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT, base_of, options

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
FENCE = re.compile(r'(?P<before>.*?)^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```\n', re.M | re.S)
SMALL = {('train.py', 'test.py', 'infer.py', 'visualize.py', 'mmsimvit.train', 'mmsimvit.test', 'mmsimvit.infer'): options(),
         ('benchmark.py', ): ['--rounds', '1']}
PYTHON = '''#!{python}
import os, sys
words = sys.argv[1:]
for names, added in {small!r}.items():
    if any(word.split('/')[-1] in names for word in words):
        words += added
os.execv({python!r}, [{python!r}, *words])
'''
FRAGMENT = '''
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
cfg = Config.fromfile({file!r})
cfg.model.backbone.pop('init_cfg', None)
with DefaultScope.overwrite_default_scope(cfg.default_scope):
    model = MODELS.build(cfg.model)
if 'optim_wrapper' in cfg:
    build_optim_wrapper(model, cfg.optim_wrapper)
'''


class Block(NamedTuple):
    language: str
    code: str
    line: int
    not_run: str | None = None  # the reason
    fragment_of: str | None = None  # a config


def blocks(text: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        comment = re.search(r'<!-- (not run|a fragment of): (.+?) -->\s*\Z', match['before'], re.S)
        kind, words = comment.groups() if comment else (None, None)
        found.append(Block(match['language'], match['code'], text.count('\n', 0, match.start('code')),
                           words if kind == 'not run' else None, words if kind == 'a fragment of' else None))
    return found


@pytest.fixture
def sandbox(workspace, tmp_path):
    """A folder as a clone of the repository has it, with a small generated data set."""
    for path in ROOT.iterdir():
        if not path.name.startswith('.') and path.name not in ('data', 'work_dirs', 'checkpoints', 'build', 'dist', 'site'):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(workspace / 'data', tmp_path / 'data')
    (tmp_path / '.bin').mkdir()
    shim = tmp_path / '.bin/python'
    shim.write_text(PYTHON.format(python=sys.executable, small=SMALL))
    shim.chmod(0o755)
    return tmp_path


@pytest.mark.pages
@pytest.mark.parametrize('page', [pytest.param(page, id=page.name) for page in PAGES])
def test_what_a_page_shows_runs(page, sandbox):
    env = dict(os.environ, PATH=os.pathsep.join([str(sandbox / '.bin'), str(Path(sys.executable).parent), os.environ['PATH']]),
               PYTHONPATH=str(ROOT))
    env.pop('PYTHON', None)  # make hands its own on, and the launchers would run that in place of the folder's
    for block in blocks(page.read_text()):
        if block.not_run or block.language not in ('shell', 'python'):
            continue
        if block.fragment_of:
            file = sandbox / 'fragment.py'
            of = base_of(block.fragment_of) if '::' in block.fragment_of else str(ROOT / 'configs' / block.fragment_of)
            base = '' if '_base_ =' in block.code else f'_base_ = {of!r}\n'
            code = re.sub(r"(?m)^_base_ = '(\w+::.+)'", lambda line: f'_base_ = {base_of(line[1])!r}', block.code)
            file.write_text(base + code)
            command = [sys.executable, '-c', FRAGMENT.format(file=str(file))]
        elif block.language == 'python':
            command = [sys.executable, '-c', block.code]
        else:
            command = ['bash', '-euo', 'pipefail', '-c', block.code]
        result = subprocess.run(command, cwd=sandbox, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                timeout=900)
        assert result.returncode == 0, f'{page.name}:{block.line}\n{block.code}\n{result.stdout[-3000:]}'


@pytest.mark.parametrize('page', [pytest.param(page, id=page.name) for page in PAGES])
def test_blocks_say_what_they_are(page):
    """Each fence has a language, so that none goes unseen; what is not run says why."""
    found = blocks(page.read_text())
    assert 2 * len(found) == len(re.findall(r'^\s*```', page.read_text(), re.M))
    for block in found:
        assert block.language in ('shell', 'python', 'diff', 'text', 'bibtex'), f'{page.name}:{block.line}'
        assert block.not_run is None or len(block.not_run.split()) > 1, f'{page.name}:{block.line}'
        if block.not_run is None and block.language in ('text', 'diff'):
            commands = re.findall(r'^\+?(?:make |pip |python |tools/|\w+ ?= ?dict\().*', block.code, re.M)
            assert not commands, f'{page.name}:{block.line} is neither run nor says why not'


@cache
def headings_of(page):
    """As links name them."""
    parts = re.split(r'^```.*\n', page.read_text(), flags=re.M)
    lines = re.findall(r'^#+ (.+)', ''.join(parts[::2]), re.M)  # what lies between two fences is code
    return [re.sub(r'[^\w -]', '', line).strip().lower().replace(' ', '-') for line in lines]


def test_links_of_the_readme_and_pages_lead_somewhere():
    """Those within the repository, to a heading where they name one; the site's builder checks those of its pages once more."""
    for page in PAGES:
        for target, heading in re.findall(r'\]\((?!https?://|mailto:)([^)#\s]*)#?([^)\s]*)\)', page.read_text()):
            found = page.parent / target if target else page
            assert found.exists(), f'{page.name}: {target}'
            if heading:
                assert heading in headings_of(found), f'{page.name}: {target}#{heading}, of {headings_of(found)}'


@pytest.mark.pages
@pytest.mark.parametrize('address', sorted({
    address for page in PAGES for address in re.findall(r'\]\((https?://[^)\s]+)\)', page.read_text())}))
def test_other_sites_have_what_the_pages_link(address):
    """Skipped where there is no way to the site, or it turns programs away; only what is not there fails."""
    request = urllib.request.Request(address, method='HEAD', headers={'User-Agent': 'Mozilla/5.0'})
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except urllib.error.HTTPError as error:
        assert error.code not in (404, 410), f'{address}: {error}'
        pytest.skip(f'{address}: {error}')
    except OSError as error:
        pytest.skip(f'no way to {address}: {error}')


def test_a_failing_block_is_found():
    text = 'Words.\n\n<!-- not run: it needs COCO -->\n```shell\nfalse\n```\n```python\nassert False\n```\n'
    assert blocks(text) == [Block('shell', 'false\n', 4, not_run='it needs COCO'), Block('python', 'assert False\n', 7)]
