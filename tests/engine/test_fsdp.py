"""What our FSDP strategy adds; tests/tools/test_launchers.py trains with it."""
import torch
from torch import nn

from mmsimvit import LIT, DWNet, SimViT
from mmsimvit.engine.fsdp import ShardedStrategy, wrap_blocks
from mmsimvit.layers import Block


class Own(SimViT):
    """A user's, with blocks of their own."""

    class OwnBlock(nn.Module):
        pass

    block_type = OwnBlock


def test_blocks_of_every_backbone_are_units():
    with torch.device('meta'):
        units = [LIT('ti').stages[0].blocks[0], DWNet('t').stages[0].blocks[0], Own.OwnBlock()]
    assert isinstance(units[0], Block)
    assert all(wrap_blocks(unit, recurse=False, nonwrapped_numel=0) for unit in units)
    assert not wrap_blocks(nn.Linear(1, 1), recurse=False, nonwrapped_numel=0)


def test_batch_norms_are_synchronised_if_the_config_says_so(tmp_path):
    model = nn.Sequential(nn.BatchNorm2d(3))
    for sync_bn, norm in ((None, nn.BatchNorm2d), ('torch', nn.SyncBatchNorm)):
        strategy = ShardedStrategy(sync_bn=sync_bn, work_dir=str(tmp_path), experiment_name=f'sync {sync_bn}')
        assert type(strategy.convert_model(model)[0]) is norm
