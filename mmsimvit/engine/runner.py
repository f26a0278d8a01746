"""mmengine's runners, with what they lack here."""
import copy
from typing import Any

from mmengine.config import Config
from mmengine.runner import BaseLoop, FlexibleRunner, Runner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from ..datasets import check_pipelines
from ..datasets.checked_pipeline import check_batches
from ..errors import DataError
from ..models import check_fit, check_heads
from .evaluation import fit_evaluator
from .fsdp import SHARDED_STRATEGY


class _Mended:
    """Errors of data loading name the file, and logs go to the folder of the run."""

    def build_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        try:
            loader = super().build_dataloader(*args, **kwargs)  # type: ignore[misc]  # of the runner that this is mixed into
        except ValueError as error:
            if 'need at least one array to concatenate' not in str(error):  # mmengine.dataset.BaseDataset, of an empty list
                raise
            raise DataError('a data set has no image left that could be trained or evaluated on; are its filter_cfg and '
                            'indices right?') from error
        check_pipelines(loader.dataset)
        check_batches(loader)
        return loader

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        return fit_evaluator(super().build_val_loop(loop))  # type: ignore[misc]

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        return fit_evaluator(super().build_test_loop(loop))  # type: ignore[misc]

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        # mmengine keeps visualizers by their names, and the configs of all three libraries have one name for theirs: a second
        # run in a process would get that of the first, and log into its folder.
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, 'name': self.log_dir}  # type: ignore[attr-defined]
        return super().build_visualizer(visualizer)  # type: ignore[misc]


class CheckedDataRunner(_Mended, Runner):
    """mmengine's Runner, with errors of data loading that name the file, and of widths that say what fits."""

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """As mmengine does, after which a dry run says whether backbone, neck and heads fit."""
        if isinstance(model, dict):
            check_heads(model)
        self.settings = copy.deepcopy(model) if isinstance(model, dict) else None  # some models change theirs
        built = super().build_model(model)
        self.seen = check_fit(built, self.settings)
        return built


class CheckedDataFlexibleRunner(_Mended, FlexibleRunner):
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
