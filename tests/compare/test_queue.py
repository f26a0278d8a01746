"""A comparison as a user runs it: killed and gone on with, with backbones that fail, the same numbers each time."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mmsimvit.compare.plan import schedule
from mmsimvit.compare.queue import alone_in
from mmsimvit.errors import ConfigError
from tests.compare.test_plan import settings

pytestmark = pytest.mark.full


def command(out, *backbones, more=(), **options):
    words = ['-m', 'mmsimvit', 'compare', *backbones, '--iterations', '4', '--evaluations', '2', '--batch-size', '4',
             '--rounds', '1', '--workers', '0', '--out-dir', str(out), *more]
    return [sys.executable, *words, '--cfg-options', *(f'{key}={value}' for key, value in settings(**options).items())]


def run(out, cwd, *backbones, more=(), **options):
    subprocess.run(command(out, *backbones, more=more, **options), cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / 'results.json').read_text())


def scores(results):
    return {one['label']: [seed['curve'][-1]['scores'] for seed in one['seeds']] for one in results['backbones']}


def test_killed_twice_and_finished(workspace, tmp_path):
    """With the numbers of one that nothing happened to; each training is run once, and one backbone fails."""
    words, more = ('SimViT:micro', 'bad=SimViT:micro,pretrained=nothing.pth'), ('--rates', '2e-3', '--seeds', '0', '1')
    out = tmp_path / 'killed'
    for number in range(2):
        process = subprocess.Popen(command(out, *words, more=more), cwd=workspace, stdout=subprocess.DEVNULL)
        wanted = out / 'runs/SimViT_micro' / f'seed_{number}' / 'iter_2.pth'
        while not wanted.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = run(out, workspace, *words, more=more)
    expected = run(tmp_path / 'whole', workspace, *words, more=more)
    assert scores(found) == scores(expected)
    ours, bad = found['backbones']
    assert [len(seed['curve']) for seed in ours['seeds']] == [2, 2]
    assert [seed['iterations'] for seed in ours['seeds']] == [4, 4]
    assert not bad['seeds'] and 'nothing.pth' in bad['failures'][0]
    assert ours['scores']['mIoU'] == expected['backbones'][0]['scores']['mIoU']
    began = {path: path.stat().st_mtime_ns for path in out.glob('runs/SimViT_micro/*/*')}
    again = run(out, workspace, 'SimViT:micro', more=more)
    assert {path: path.stat().st_mtime_ns for path in out.glob('runs/SimViT_micro/*/*')} == began  # nothing is run twice
    assert scores(again)['SimViT:micro'] == scores(found)['SimViT:micro']


def test_the_same_backbone_twice(workspace, tmp_path):
    words = ('one=SimViT:micro', 'other=SimViT:micro')
    found = run(tmp_path, workspace, *words, more=('--rates', '2e-3', '--seeds', '0', '1', '2'))
    pair = found['pairs'][0]['scores']['mIoU']
    assert pair['value'] == 0 and pair['low'] <= 0 <= pair['high']


def test_one_trained_half_as_long_is_found(tmp_path):
    words = 'whole=mmdet.ResNet:18', 'half=mmdet.ResNet:18'
    more = '--rates', '2e-3', '--seeds', '0', '1', '2', '--iterations', '120', '--batch-size', '8', '--jobs', '2'
    out, options = tmp_path / 'compared', dict(num_training=64, num_validation=24, image_size=64)
    subprocess.run(command(out, *words, more=(*more, '--plan'), **options), cwd=tmp_path, check=True,
                   stdout=subprocess.DEVNULL)
    lines = ''.join(f'{name} = {value!r}\n' for name, value in schedule(60, 2).items())
    for path in out.glob('runs/half/*/config.py'):
        path.write_text(path.read_text() + lines)
    found = run(out, tmp_path, *words, more=more, **options)
    pair = found['pairs'][0]
    assert (pair['one'], pair['other']) == ('whole', 'half')
    assert pair['scores']['mIoU']['value'] > 1 and pair['scores']['mIoU']['probability'] > 0.95


def test_a_folder_is_one_comparison_at_a_time(tmp_path):
    with alone_in(tmp_path), pytest.raises(ConfigError, match='another comparison runs in'), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):  # which the first let go of
        assert os.listdir(tmp_path) == ['.lock']
