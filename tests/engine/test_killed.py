"""A training that is killed at any moment and goes on has the weights of one that was not, bit for bit."""
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from mmsimvit.cli.train import main
from tests.conftest import ROOT, flatten, options

KILLS = 10
SETTINGS = options(**{'train_cfg.max_epochs': 4, 'train_cfg.val_interval': 4, 'train_dataloader.batch_size': 4,
                      'default_hooks.checkpoint.interval': 1, 'randomness.seed': 5, 'randomness.deterministic': True,
                      'model.backbone.drop_path_rate': 0.2})


def train(words, folder):
    """In a process of its own, which is forked and has all libraries, so that most of its time is training."""
    os.chdir(folder)
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    main(words)
    os._exit(0)


def start(words, folder):
    process = multiprocessing.get_context('fork').Process(target=train, args=([str(word) for word in words], folder))
    process.start()
    return process


@pytest.mark.parametrize('config', ['retinanet_simvit_micro_shapes', 'semfpn_simvit_micro_shapes', 'simvit_micro_shapes'])
@pytest.mark.full
def test_ten_kills_change_no_bit(config, workspace, tmp_path):
    words = [ROOT / f'configs/{config}.py', '--resume', *SETTINGS]
    begun = time.monotonic()
    uncut = start([*words[:2], '--work-dir', tmp_path / 'uncut', *words[2:]], workspace)
    uncut.join()
    assert uncut.exitcode == 0
    seconds, moments, killed = time.monotonic() - begun, random.Random(0), 0
    while killed < KILLS:
        process = start([*words[:2], '--work-dir', tmp_path / 'cut', *words[2:]], workspace)
        # Mostly before what is left is done, for all that was done before is kept.
        process.join(moments.uniform(0.2, 0.2 + 0.8 / (killed + 1)) * seconds)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:  # it was quicker: once more from the last checkpoint but one
            (tmp_path / 'cut/epoch_4.pth').unlink()
    last = start([*words[:2], '--work-dir', tmp_path / 'cut', *words[2:]], workspace)
    last.join()
    assert last.exitcode == 0
    one, other = (torch.load(tmp_path / name / 'epoch_4.pth') for name in ('uncut', 'cut'))
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        ours, theirs = flatten(one[part]), flatten(other[part])
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            same = torch.equal(value, theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key]
            assert same, f'{part} {key}'
    assert not list((tmp_path / 'cut').glob('.*.pth')), 'nothing is left of what was not finished'
