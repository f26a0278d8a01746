import os
import re
import resource
import subprocess
import sys

import pytest
import torch

from mmsimvit.engine.work_dir import WholeFileBackend, check_work_dir, is_whole
from mmsimvit.errors import WriteError
from tests.conftest import ROOT, options

TRAIN = ROOT / 'tools/train.py'
SEGMENTOR = ROOT / 'configs/semfpn_simvit_micro_shapes.py'


def test_a_file_in_the_way(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(WriteError, match=r'file/.trial cannot be written: (File exists|Not a directory); remove the file'):
        check_work_dir(tmp_path / 'file')
    with pytest.raises(WriteError, match=r'file/sub/.trial cannot be written: Not a directory'):
        check_work_dir(tmp_path / 'file/sub')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match='cannot be written: Permission denied; allow it, or name another folder'):
        check_work_dir(tmp_path / 'work')


def test_a_write_that_is_not_permitted(tmp_path, monkeypatch):
    """As root as well, which the test above cannot be."""
    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('pathlib.Path.mkdir', refuse)
    with pytest.raises(WriteError, match='work/.trial cannot be written: Permission denied; allow it, or name another folder'):
        check_work_dir(tmp_path / 'work')


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(tmp_path):
    """With a limit on the size of files, which a full disk differs from by the number of the error alone."""
    path = tmp_path / 'epoch.pth'
    backend = WholeFileBackend()
    backend.put(bytes(1000), path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(WriteError, match='epoch.pth cannot be written: File too large; raise the limit'):
            backend.put(bytes(10000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == bytes(1000)
    assert [file.name for file in tmp_path.iterdir()] == ['epoch.pth']


@pytest.mark.full
def test_training_on_a_full_disk_ends_with_one_line_and_goes_on_later(workspace, tmp_path):
    def train(number, limit, code):
        words = options(**{'train_cfg.max_epochs': number, 'train_cfg.val_interval': 9,
                           'default_hooks.checkpoint.max_keep_ckpts': 1})
        result = subprocess.run(
            [sys.executable, TRAIN, SEGMENTOR, '--resume', '--work-dir', tmp_path, *words], cwd=workspace, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)))
        assert result.returncode == code, result.stdout[-3000:]
        return result.stdout

    train(1, resource.RLIM_INFINITY, 0)
    out = train(2, 2**20, 1)  # logs fit, a checkpoint of 40 MB does not
    assert re.fullmatch(rf'error: {tmp_path}/epoch_2.pth cannot be written: File too large; .* is whole', out.splitlines()[-1])
    assert 'Traceback' not in out
    assert [path.name for path in tmp_path.rglob('*.pth')] == ['epoch_1.pth']
    assert is_whole(tmp_path / 'epoch_1.pth')
    out = train(3, resource.RLIM_INFINITY, 0)
    assert 'resumed epoch: 1' in out
    # One is what was asked for, but mmengine removes it before the next is there.
    assert sorted(path.name for path in tmp_path.rglob('*.pth')) == ['epoch_2.pth', 'epoch_3.pth']
    assert torch.load(tmp_path / 'epoch_3.pth')['meta']['epoch'] == 3
