"""What our FSDP strategy adds; tests/cli/test_launch.py trains with it."""
import torch
from torch import nn

from mmsimvit import LIT, DWNet
from mmsimvit.engine.fsdp import ShardedStrategy, wrap_blocks


def test_blocks_of_every_backbone_are_units():
    """As FSDP asks: of a module before of what is in it."""
    with torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=DWNet('t'), other=LIT('ti'), neck=nn.Linear(1, 1)))
    for module in model.modules():
        assert wrap_blocks(module, recurse=True, nonwrapped_numel=0)
    units = [module for module in model.modules() if wrap_blocks(module, recurse=False, nonwrapped_numel=0)]
    assert units == [block for backbone in (model.backbone, model.other) for stage in backbone.stages for block in stage.blocks]


def test_batch_norms_are_synchronised_if_the_config_says_so(tmp_path):
    model = nn.Sequential(nn.BatchNorm2d(3))
    for sync_bn, norm in ((None, nn.BatchNorm2d), ('torch', nn.SyncBatchNorm)):
        strategy = ShardedStrategy(sync_bn=sync_bn, work_dir=str(tmp_path), experiment_name=f'sync {sync_bn}')
        assert type(strategy.convert_model(model)[0]) is norm
