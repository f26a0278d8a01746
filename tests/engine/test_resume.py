import os
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmsimvit.engine import find_whole_checkpoint
from mmsimvit.engine.work_dir import is_whole


def test_training_checkpoints_load_with_weights_only(tmp_path):
    """What mmengine keeps in a checkpoint besides tensors, among it a log history that pickles as getattr."""
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = dict(history=history, array=np.arange(3), scalar=np.float64(0.5), flags=np.array([True]),
                   small=np.float32([1]), optimizer=dict(step=torch.tensor(3.0)))
    torch.save(content, tmp_path / 'training.pth')
    loaded = torch.load(tmp_path / 'training.pth', weights_only=True)
    assert loaded['history'].mean() == 1.5
    assert loaded['history'].statistics('max') == 2.0
    assert loaded['array'].tolist() == [0, 1, 2]
    assert loaded['scalar'] == 0.5


class Getattr:
    """A pickle of getattr(owner, name), as a stranger's file might hold."""

    def __init__(self, owner, name):
        self.arguments = owner, name

    def __reduce__(self):
        return getattr, self.arguments


@pytest.mark.parametrize('load', [partial(torch.load, weights_only=True), CheckpointLoader.load_checkpoint],
                         ids=['torch', 'mmengine'])
@pytest.mark.parametrize(('owner', 'name'), [
    (HistoryBuffer, '__init__'), (HistoryBuffer, '__globals__'), (np.ndarray, 'tofile')])
def test_getattr_reaches_nothing_else(owner, name, load, tmp_path):
    torch.save(Getattr(owner, name), tmp_path / 'stranger.pth')
    with pytest.raises(pickle.UnpicklingError, match='is not allowed in a checkpoint'):
        load(str(tmp_path / 'stranger.pth'))


def test_what_is_allowed_stays_so_after_mmengine_has_read_a_checkpoint(tmp_path):
    torch.save(dict(history=HistoryBuffer([1.0], [1])), tmp_path / 'training.pth')
    for _ in range(2):
        assert CheckpointLoader.load_checkpoint(str(tmp_path / 'training.pth'))['history'].mean() == 1.0
    assert torch.load(tmp_path / 'training.pth', weights_only=True)['history'].mean() == 1.0


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert find_whole_checkpoint(tmp_path / 'nowhere') is None
    assert find_whole_checkpoint(tmp_path) is None
    for number in (1, 2, 10):
        torch.save(dict(weights=torch.zeros(1000)), tmp_path / f'epoch_{number}.pth')
    torch.save({}, tmp_path / 'best_coco_bbox_mAP_epoch_9.pth')
    whole = (tmp_path / 'epoch_10.pth').read_bytes()
    assert find_whole_checkpoint(tmp_path).endswith('epoch_10.pth')
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / 'epoch_10.pth').write_bytes(whole[:length])
        assert find_whole_checkpoint(tmp_path).endswith('epoch_2.pth'), length


def test_mmengines_note_of_the_last_checkpoint_is_one_of_the_candidates(tmp_path):
    """It knows of other names, but is older than a checkpoint after which the training was killed at once."""
    (tmp_path / 'last_checkpoint').write_text('/moved/from/custom_1.pth')
    assert find_whole_checkpoint(tmp_path) is None
    torch.save({}, tmp_path / 'custom_1.pth')
    assert find_whole_checkpoint(tmp_path).endswith('custom_1.pth')
    torch.save({}, tmp_path / 'epoch_2.pth')
    os.utime(tmp_path / 'custom_1.pth', (1, 1))
    assert find_whole_checkpoint(tmp_path).endswith('epoch_2.pth')


def test_a_copied_folder_has_the_times_of_the_copy(tmp_path):
    """In any order; what a checkpoint says of itself counts, also of a longer training of before."""
    for number, time in ((3, '20260101_000003'), (1, '20260101_000002'), (2, '20260101_000003'), (9, '20250101_000000')):
        torch.save(dict(meta=dict(time=time, iter=number)), tmp_path / f'epoch_{number}.pth')
    assert find_whole_checkpoint(tmp_path).endswith('epoch_3.pth')


def test_checkpoints_before_torch_1_6_are_whole_if_not_empty(tmp_path):
    torch.save({}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert is_whole(tmp_path / 'old.pth')
    assert not is_whole(tmp_path / 'missing.pth')
