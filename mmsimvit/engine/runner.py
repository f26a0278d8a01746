"""mmengine's runners, whose data loading says which file is wrong."""
from typing import Any

from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner
from torch.utils.data import DataLoader

from ..datasets import check_pipelines
from .launch import SHARDED_STRATEGY


class _CheckedData:
    """Puts a :class:`mmsimvit.datasets.checked_pipeline.CheckedPipeline` into each data set."""

    def build_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        loader = super().build_dataloader(*args, **kwargs)  # type: ignore[misc]  # of the runner that this is mixed into
        check_pipelines(loader.dataset)
        return loader


class CheckedDataRunner(_CheckedData, Runner):
    """mmengine's Runner, with errors of data loading that name the file."""


class CheckedDataFlexibleRunner(_CheckedData, FlexibleRunner):
    """mmengine's FlexibleRunner, with errors of data loading that name the file."""


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """The runner of a whole config: mmengine's FlexibleRunner if it has a ``strategy``, such as FSDP."""
    if not cfg.get('strategy'):
        return CheckedDataRunner.from_cfg(cfg)
    if cfg.get('sync_bn') and cfg.strategy.type == SHARDED_STRATEGY:  # which mmengine's strategies do not look at
        cfg.strategy.setdefault('sync_bn', cfg.sync_bn)
    runner = CheckedDataFlexibleRunner.from_cfg(cfg)
    runner._compile = cfg.get('compile') or False  # which mmengine 0.10 takes as an argument, but not from a config
    return runner
