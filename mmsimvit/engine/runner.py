"""mmengine's runners, whose data loading says which file is wrong."""
from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner
from mmengine.visualization import Visualizer
from torch.utils.data import DataLoader

from ..datasets import check_pipelines
from .launch import SHARDED_STRATEGY


class _CheckedData:
    """Puts a :class:`mmsimvit.datasets.checked_pipeline.CheckedPipeline` into each data set."""

    def build_dataloader(self, *args, **kwargs) -> DataLoader:
        loader = super().build_dataloader(*args, **kwargs)
        check_pipelines(loader.dataset)
        return loader


class _OwnVisualizer:
    """Logs where this run does. mmengine keeps visualizers by their names, and the configs of all three libraries have one
    name for theirs: a second run in a process would get that of the first, and log into its folder."""

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, 'name': self.log_dir}
        return super().build_visualizer(visualizer)


class CheckedDataRunner(_CheckedData, _OwnVisualizer, Runner):
    pass


class CheckedDataFlexibleRunner(_CheckedData, _OwnVisualizer, FlexibleRunner):
    pass


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """The runner of a whole config: mmengine's FlexibleRunner if it has a ``strategy``, such as FSDP."""
    if not cfg.get('strategy'):
        return CheckedDataRunner.from_cfg(cfg)
    if cfg.get('sync_bn') and cfg.strategy.type == SHARDED_STRATEGY:  # which mmengine's strategies do not look at
        cfg.strategy.setdefault('sync_bn', cfg.sync_bn)
    runner = CheckedDataFlexibleRunner.from_cfg(cfg)
    runner._compile = cfg.get('compile') or False  # which mmengine 0.10 takes as an argument, but not from a config
    return runner
