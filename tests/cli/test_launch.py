"""The launch scripts, with two processes that talk through gloo where there is no GPU."""
import json
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, flatten, options

DETECTOR = ROOT / 'configs/maskrcnn_simvit_micro_shapes.py'
SEGMENTOR = ROOT / 'configs/semfpn_simvit_micro_shapes.py'
# MMDetection's evaluation shows nothing below this score, which a fresh detector does not reach.
EVERY_SCORE = {'model.test_cfg.rcnn.score_thr': 0}


def epochs(number, **changes):
    return options(**{'train_cfg.max_epochs': number, 'train_cfg.val_interval': number, 'train_dataloader.batch_size': 2,
                      'default_hooks.logger.interval': 1, **changes})


def launch(script, *words, cwd, code=0, **environment):
    process = start(script, *words, cwd=cwd, **environment)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == code, out[-8000:]
    return out


def start(script, *words, cwd, **environment):
    env = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', **environment)
    return subprocess.Popen([ROOT / 'tools' / script, *map(str, words)], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, start_new_session=True)


def scores(out):
    """The scores of an evaluation, from the last line that has any."""
    line = re.findall(r'Epoch\((?:val|test)\) +.*', out)[-1]
    return {name: value for name, value in re.findall(r'(\S+): ([\d.-]+)', line) if 'time' not in name}


def test_two_processes_train_and_evaluate_a_detector(workspace, tmp_path):
    """Three validation images for two processes: one of them is seen twice, and must count once."""
    out = launch('dist_train.sh', DETECTOR, 2, '--work-dir', tmp_path, *epochs(1, **EVERY_SCORE), cwd=workspace)
    assert len(re.findall(r'Epoch\(train\) +\[1\]\[\d/2\]', out)) == 2, 'eight images, two a step in each of two processes'
    assert 'Grad strides do not match' not in out
    checkpoint = tmp_path / 'epoch_1.pth'
    one, two = (launch('dist_test.sh', DETECTOR, checkpoint, number, '--work-dir', tmp_path / f'test_{number}',
                       '--out', tmp_path / f'{number}.pkl', *epochs(1, **EVERY_SCORE), cwd=workspace) for number in (1, 2))
    assert scores(one) == scores(two) == scores(out)
    assert 'coco/segm_mAP' in scores(one)
    ours, theirs = (pickle.loads((tmp_path / f'{number}.pkl').read_bytes()) for number in (1, 2))
    assert [found['img_id'] for found in ours] == [found['img_id'] for found in theirs] == [0, 1, 2]
    assert all(torch.equal(a['pred_instances']['scores'], b['pred_instances']['scores']) for a, b in zip(ours, theirs))
    assert all(len(found['pred_instances']['scores']) > 0 for found in ours)


# Registered before all else, so that it runs last. Each process has a file of its own: what two print may mix.
AT_EXIT = '''
import atexit, os, pathlib
def report():
    names = []
    for path in pathlib.Path('/proc/self/task').glob('*/comm'):
        try:
            names.append(path.read_text().strip())
        except OSError:  # it has ended by now
            continue
    folder, rank = pathlib.Path(os.environ['THREADS_AT_EXIT']), os.environ['RANK']
    (folder / rank).write_text(' '.join(name for name in names if 'gloo' in name))
if 'RANK' in os.environ:
    atexit.register(report)
'''


@pytest.mark.full
def test_two_processes_give_a_segmentor_the_scores_of_one(workspace, tmp_path):
    """And leave no thread behind that would abort them while Python shuts down."""
    threads = tmp_path / 'threads'
    threads.mkdir()
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site/sitecustomize.py').write_text(AT_EXIT)
    out = launch('dist_train.sh', SEGMENTOR, 2, '--work-dir', tmp_path, *epochs(1), cwd=workspace,
                 PYTHONPATH=str(tmp_path / 'site'), THREADS_AT_EXIT=str(threads))
    assert {path.name: path.read_text() for path in threads.iterdir()} == {'0': '', '1': ''}
    one = launch('dist_test.sh', SEGMENTOR, tmp_path / 'epoch_1.pth', 1, '--work-dir', tmp_path / 'one', *epochs(1),
                 cwd=workspace)
    assert scores(one) == scores(out)
    assert float(scores(one)['aAcc']) > 0


@pytest.mark.full
def test_a_killed_worker_ends_the_job_which_then_goes_on(workspace, tmp_path):
    words = [DETECTOR, 2, '--work-dir', tmp_path, '--resume']
    process = start('dist_train.sh', *words, *epochs(1000, **{'train_cfg.val_interval': 1000}), cwd=workspace)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / 'epoch_1.pth').exists():
            assert process.poll() is None, process.communicate()[0][-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(worker_of(process.pid, rank=1), signal.SIGKILL)
        killed = time.monotonic()
        out = process.communicate(timeout=60)[0]
        assert time.monotonic() - killed < 60
        assert process.returncode != 0
        assert 'SIGKILL' in out, 'the cause'
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    last = max(int(path.stem.removeprefix('epoch_')) for path in tmp_path.glob('epoch_*.pth'))
    out = launch('dist_train.sh', *words, *epochs(last + 1), cwd=workspace)
    assert re.search(rf'resumed epoch: {last}, ', out)
    assert (tmp_path / f'epoch_{last + 1}.pth').exists()


def worker_of(parent, rank):
    """The process of that rank which torchrun, or the script that became it, has started."""
    for process in Path('/proc').glob('[0-9]*'):
        try:
            is_child = f'\nPPid:\t{parent}\n' in (process / 'status').read_text()
            environment = (process / 'environ').read_bytes().split(b'\0')
        except OSError:  # it has ended by now
            continue
        if is_child and f'RANK={rank}'.encode() in environment:
            return int(process.name)
    raise AssertionError(f'no process of rank {rank} was started by {parent}')


SRUN = '''#!{python}
import json, os, subprocess, sys
options = [word for word in sys.argv[1:] if word.startswith('--') and '=' in word]
first = next(i for i, word in enumerate(sys.argv) if i and not word.startswith('--'))
names = [word.split('=')[0] for word in sys.argv[1:first]]
json.dump(dict(asked=dict(word[2:].split('=', 1) for word in sys.argv[1:first]), command=sys.argv[first:]),
          open('srun.json', 'w'))
tasks = int(dict(word[2:].split('=', 1) for word in sys.argv[1:first])['ntasks'])
running = [subprocess.Popen(sys.argv[first:], env=dict(os.environ, SLURM_PROCID=str(task), SLURM_NTASKS=str(tasks),
                                                       SLURM_LOCALID=str(task), SLURM_NODELIST='node[1]'))
           for task in range(tasks)]
sys.exit(max(process.wait() for process in running))
'''


@pytest.fixture
def srun(tmp_path, workspace):
    """The environment of a machine whose srun writes down what it was asked, and runs it here."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name, text in (('srun', SRUN.format(python=sys.executable)), ('scontrol', '#!/bin/sh\necho localhost\n')):
        (folder / name).write_text(text)
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    return dict(PATH=f'{folder}{os.pathsep}{os.environ["PATH"]}', GPUS='2', SLURM_JOB_ID='123456',
                SRUN_ARGS='--qos=high --exclusive=user')


@pytest.mark.full
def test_slurm_gets_what_it_needs_and_a_requeued_job_goes_on(srun, workspace, tmp_path):
    cwd = tmp_path / 'cluster'
    shutil.copytree(workspace, cwd)
    words = ['gpu', 'mask', DETECTOR, tmp_path / 'work']
    out = launch('slurm_train.sh', *words, *epochs(1), cwd=cwd, **srun)
    assert 'nothing to resume from' in out
    asked = json.loads((cwd / 'srun.json').read_text())
    assert asked['asked'] == {
        'partition': 'gpu', 'job-name': 'mask', 'gres': 'gpu:2', 'ntasks': '2', 'ntasks-per-node': '2', 'cpus-per-task': '5',
        'kill-on-bad-exit': '1', 'qos': 'high', 'exclusive': 'user'}
    assert asked['command'][:5] == [sys.executable, '-u', str(ROOT / 'tools/train.py'), str(DETECTOR), '--work-dir']
    assert 'Epoch(train) [1][2/2]' in re.sub(r' +', ' ', out), 'eight images, two a step in each of two processes'

    srun['GPUS'] = '1'
    out = launch('slurm_train.sh', *words, *epochs(2), cwd=cwd, SLURM_RESTART_COUNT='1', **srun)  # again, with what is left
    assert 'resumed epoch: 1' in out

    launch('slurm_test.sh', 'gpu', 'mask', DETECTOR, tmp_path / 'work/epoch_2.pth', '--work-dir', tmp_path / 'test', *epochs(1),
           cwd=cwd, **srun)
    asked = json.loads((cwd / 'srun.json').read_text())
    assert asked['command'][2:5] == [str(ROOT / 'tools/test.py'), str(DETECTOR), str(tmp_path / 'work/epoch_2.pth')]


@pytest.mark.parametrize(('script', 'words'), [
    ('dist_train.sh', ['config.py']), ('dist_test.sh', ['config.py', 'epoch_1.pth']),
    ('slurm_train.sh', ['gpu', 'job', 'config.py']), ('slurm_test.sh', ['gpu', 'job', 'config.py'])])
def test_too_few_words_give_the_usage(script, words, tmp_path):
    assert launch(script, *words, cwd=tmp_path, code=2).startswith('usage: ')


@pytest.mark.parametrize(('launcher', 'message'), [
    ('pytorch', 'error: --launcher pytorch is for processes that tools/dist_train.sh starts, which would set RANK'),
    ('slurm', 'error: --launcher slurm is for processes that tools/slurm_train.sh starts, which would set SLURM_PROCID')])
def test_a_launcher_that_did_not_start_the_process(launcher, message, monkeypatch, tmp_path):
    from mmsimvit.train import main
    for name in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'SLURM_NTASKS'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match=message):
        main([str(DETECTOR), '--launcher', launcher, '--work-dir', str(tmp_path)])


@pytest.mark.full
def test_sharded_training_leaves_checkpoints_for_all(workspace, tmp_path):
    """FSDP computes what data-parallel training does, clipped gradients included, and its checkpoints are plain ones."""
    config = tmp_path / 'sharded.py'
    config.write_text(f'_base_ = [{str(SEGMENTOR)!r}, {str(ROOT / "configs/_base_/fsdp.py")!r}]\n')
    clip = {'optim_wrapper.clip_grad.max_norm': 0.1}
    sharded = launch('dist_train.sh', config, 2, '--work-dir', tmp_path / 'sharded', *epochs(2, **clip), cwd=workspace)
    plain = launch('dist_train.sh', SEGMENTOR, 2, '--work-dir', tmp_path / 'plain', *epochs(2, **clip), cwd=workspace)

    def norms(out):
        return [float(norm) for norm in re.findall(r'grad_norm: ([\d.]+)', out)]

    assert len(norms(plain)) == 4, 'two steps in each of two epochs'
    assert norms(sharded) == pytest.approx(norms(plain), rel=1e-3)
    assert min(norms(plain)) > 0.1, 'clipping was at work'
    first, second = (torch.load(tmp_path / name / 'epoch_2.pth')['state_dict'] for name in ('sharded', 'plain'))
    assert first.keys() == second.keys()
    for name, value in second.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f'{name}: {text}')
    assert 'resumed epoch: 1' in launch('dist_train.sh', config, 2, '--work-dir', tmp_path / 'cut', '--resume',
                                        tmp_path / 'sharded/epoch_1.pth', *epochs(2, **clip), cwd=workspace)
    uncut, cut = (torch.load(tmp_path / name / 'epoch_2.pth') for name in ('sharded', 'cut'))
    for part in ('state_dict', 'optimizer'):
        ours, theirs = flatten(uncut[part]), flatten(cut[part])
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items() if torch.is_tensor(value)), part
    launch('dist_test.sh', config, tmp_path / 'cut/epoch_2.pth', 1, '--work-dir', tmp_path / 'test', *epochs(1), cwd=workspace)
    out = launch('dist_train.sh', SEGMENTOR, 1, '--work-dir', tmp_path / 'alone', '--resume', tmp_path / 'sharded/epoch_1.pth',
                 *epochs(2, **clip), cwd=workspace)
    assert 'resumed epoch: 1' in out
    assert 'mIoU' in out
