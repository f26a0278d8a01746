import json
import os
import subprocess
import sys
import time
import zipfile

import pytest

from mmsimvit.analysis.gpu import stop
from mmsimvit.cli import gpu_check
from tests.conftest import ROOT, run


def rows(folder):
    return [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]


def test_a_step_that_fails_is_reported_and_the_others_run(tmp_path):
    out = run(ROOT / 'tools/gpu_check.py', '--rehearse', '--minutes', '5', '--out', tmp_path, '--data', tmp_path / 'nothing',
              '--steps', 'environment', 'real_images', 'sanitizer', cwd=tmp_path, code=1)
    assert 'failed: real_images, all' in out
    ended = {row['step']: row for row in rows(tmp_path) if row['case'] == 'all'}
    assert {step: row['ok'] for step, row in ended.items()} == dict(environment=True, real_images=False, sanitizer=True)
    assert ended['real_images']['note'].startswith('FileNotFoundError: ')
    written = (tmp_path / 'gpu_check.md').read_text()
    assert written.index('## environment') < written.index('## real_images') < written.index('## sanitizer')
    assert '| card | none: a rehearsal on the CPU |' in written


def test_what_a_crash_and_a_hang_took_along_goes_on_with_the_next_step(tmp_path, monkeypatch):
    """The first worker dies in a step, the second after one that failed, the third hangs in one, the fourth ends."""
    worker = '''
import os, sys, time
from pathlib import Path
from mmsimvit.cli import gpu_check
folder, steps = Path(sys.argv[1]), sys.argv[2:]
for step in steps:
    gpu_check.record(folder, dict(step=step, case='begun'))
    if step == 'correctness':
        os.abort()
    if step == 'tiles':
        time.sleep(600)
    gpu_check.record(folder, dict(step=step, case='all', ok=step != 'speed'))
    if step == 'speed':
        os.abort()
'''

    class Popen(subprocess.Popen):
        def __init__(self, command, **options):
            steps = command[command.index('--steps') + 1:command.index('--out')]
            super().__init__([sys.executable, '-c', worker, tmp_path, *steps], **options, cwd=ROOT)

    monkeypatch.setattr(gpu_check.subprocess, 'Popen', Popen)
    monkeypatch.setattr(gpu_check, 'PATIENCE', 0)
    monkeypatch.setitem(gpu_check.STEPS, 'tiles', 0.001)
    with pytest.raises(SystemExit, match='failed: correctness, all; speed, all; tiles, all'):
        gpu_check.main(['--rehearse', '--minutes', '60', '--out', str(tmp_path),
                        '--steps', 'environment', 'correctness', 'speed', 'tiles', 'rivals'])
    ended = {row['step']: (row['ok'], row.get('note', '')) for row in rows(tmp_path) if row['case'] == 'all'}
    assert list(ended) == ['environment', 'correctness', 'speed', 'tiles', 'rivals']
    assert ended['correctness'] == (False, 'its process ended with status -6')
    assert ended['tiles'][0] is False and ended['tiles'][1].startswith('stopped after ')
    assert ended['speed'] == (False, '')  # and the next is not blamed for it
    assert ended['rivals'] == (True, '')


def test_what_no_time_was_left_for_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, 'watch', lambda worker, *rest: time.sleep(0.3) or worker.kill() or 'stopped')
    monkeypatch.setattr(gpu_check, 'PATIENCE', 0)
    gpu_check.main(['--rehearse', '--minutes', '0.001', '--out', str(tmp_path), '--steps', 'environment', 'speed'])
    assert [(row['step'], row['note']) for row in rows(tmp_path)] == [
        (step, 'not run: no time was left') for step in ('environment', 'speed')]


def test_what_a_worker_left_out_when_time_was_up_is_said(tmp_path, monkeypatch):
    class Popen(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__([sys.executable, '-c', ''], **options)

    monkeypatch.setattr(gpu_check.subprocess, 'Popen', Popen)
    gpu_check.main(['--rehearse', '--minutes', '0.002', '--out', str(tmp_path), '--steps', 'speed'])
    assert [(row['step'], row['note']) for row in rows(tmp_path)] == [('speed', 'not run: no time was left')]


def test_what_a_stopped_step_had_started_is_stopped_too(tmp_path):
    inner = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"""
import signal, subprocess, sys
from mmsimvit.analysis.gpu import stop
signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped'))
process = subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True)
try:
    process.wait()
finally:
    stop(process)
"""
    worker = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, start_new_session=True)
    while not (tmp_path / 'pid').is_file() or not (pid := (tmp_path / 'pid').read_text()):
        assert worker.poll() is None
        time.sleep(0.05)
    stop(worker, 10)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_gpu_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(SystemExit, match='error: torch finds no GPU; --rehearse runs'):
        gpu_check.main(['--out', str(tmp_path)])
    with pytest.raises(SystemExit, match='2'):
        gpu_check.main(['--minutes', '-1'])


def test_wheels_of_a_bundle_are_installed_beside_what_is_there(tmp_path):
    refused = run(ROOT / 'tools/gpu_check.py', '--bundle', tmp_path, cwd=tmp_path, code=1)
    assert f'error: {tmp_path} holds no wheels; tools/gpu_bundle.py collects them' in refused
    about = 'only_in_a_bundle-1.dist-info/'
    with zipfile.ZipFile(tmp_path / 'only_in_a_bundle-1-py3-none-any.whl', 'w') as wheel:
        wheel.writestr('sitecustomize.py', "print('out of the bundle')")  # which Python imports when it starts
        wheel.writestr(about + 'METADATA', 'Metadata-Version: 2.1\nName: only-in-a-bundle\nVersion: 1\n')
        wheel.writestr(about + 'WHEEL', 'Wheel-Version: 1.0\nGenerator: none\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        wheel.writestr(about + 'RECORD', '')
    out = run(ROOT / 'tools/gpu_check.py', '--rehearse', '--bundle', tmp_path, '--out', tmp_path / 'out',
              '--steps', 'environment', cwd=tmp_path)
    assert out.count('out of the bundle') >= 2  # in this process, and in the one of the steps
    assert [row['case'] for row in rows(tmp_path / 'out')][-1] == 'all'


@pytest.mark.full
def test_the_whole_rehearsal(own, tmp_path):
    """Every step runs to its end; what needs a GPU or is not installed says so."""
    command = [sys.executable, ROOT / 'tools/gpu_check.py', '--rehearse', '--minutes', '60', '--data', own]
    result = subprocess.run([*command, '--out', tmp_path / 'out'], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout[-3000:]
    found = rows(tmp_path / 'out')
    assert [row['step'] for row in found if row['case'] == 'all'] == list(gpu_check.STEPS)
    assert all(row['ok'] for row in found if row['case'] == 'all')
    numbers = {row['case']: row for row in found}
    assert numbers['float64']['error'] < 1e-11
    assert {'float32', 'bfloat16', 'float16'} <= numbers.keys()
    assert numbers['real images, bfloat16']['last loss'] > 0
