import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType
from torch.utils import _pytree as pytree

from ..errors import CheckpointError, NonFiniteLossError
from ..models import check_classes, check_topk
from ..weights import match_checkpoint


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Refuse a checkpoint that gives nothing to the model, which mmengine would only warn of; report a partial one.

    Args:
        whole: refuse a partial one too, as ``mmsimvit.test`` does, for what is tested would be random in part; auxiliary heads
            may be missing.

    Raises:
        CheckpointError: if no parameter of the model is in the checkpoint in its shape, or, with ``whole`` and to resume from,
            not all are; or if the processes of a training begin at different iterations.
    """

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole

    def before_train(self, runner: Runner) -> None:
        """Compare the iterations at which the processes begin, and say so if the last one is over."""
        begun = all_gather_object(runner.iter)
        if len(set(begun)) > 1:
            raise CheckpointError(f'the processes begin at the iterations {begun}: each looks for the last checkpoint in its '
                                  f'work dir, and {runner.work_dir} is not the same folder on all machines; use a shared one')
        if runner.iter >= runner.max_iters:
            runner.logger.warning(f'nothing is left to train: {runner._load_from} is of iteration {runner.iter} of '
                                  f'{runner.max_iters}, the last. For more, train longer (train_cfg.max_epochs or max_iters, '
                                  'and the ends of param_scheduler), or start a new training from it with load_from')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the names and shapes of checkpoint and model, and log how many fit."""
        model = runner.model
        whole: AbstractContextManager = nullcontext()
        if isinstance(model, FullyShardedDataParallel):  # whose parameters inside are shards
            whole = model.state_dict_type(model, StateDictType.FULL_STATE_DICT, FullStateDictConfig())
        else:
            while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
                model = model.module
        with whole:
            found = match_checkpoint(model, checkpoint)
        line = found.check_any(runner._load_from, model)
        if runner._resume and found.resampled:
            raise CheckpointError(f'cannot resume from checkpoint {runner._load_from}: {found.resampled[0]} and '
                                  f'{len(found.resampled) - 1} others were trained in another size; set the sizes of windows '
                                  'or grids that it was trained with, or start from it with load_from')
        if runner._resume and not found.complete:
            raise CheckpointError(f'cannot resume from checkpoint {runner._load_from}: it gives {found.matched} of '
                                  f'{found.total} parameters; {found.problems()}; is it of this config?')
        if self.whole:
            found.check_predictions(str(runner._load_from), model)
        log = runner.logger.info if found.complete else runner.logger.warning
        log(line)


@HOOKS.register_module()
class ReseedHook(Hook):
    """Draw the random numbers of each iteration from a seed of its own, so that a resumed training goes on with those that
    the uncut one would have had.

    The seed depends on the run's seed, the rank and the iteration. Workers that load data have their own random numbers:
    where they are started anew each epoch (``persistent_workers=False``), or an iteration-based loop loads again what it
    skips, they too are the same.
    """

    priority = 'LOWEST'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the first iteration of the epoch."""
        self._reseed(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Seed the next iteration."""
        self._reseed(runner, runner.iter + 1)

    def after_val(self, runner: Runner) -> None:
        """Seed the next iteration, whatever the validation drew."""
        self._reseed(runner, runner.iter)

    @staticmethod
    def _reseed(runner: Runner, iteration: int) -> None:
        seed = int(np.random.SeedSequence([runner.seed, get_rank(), iteration]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


@HOOKS.register_module()
class ClassesMatchHook(Hook):
    """Stop a training before it begins if a head has fewer classes than the data, which MMDetection would not notice, or than
    the validation asks for.

    ``mmdet.NumClassCheckHook`` is for detectors alone, wants equal numbers, also of masks that are of no class, and ends with a
    stack trace.

    Raises:
        ModelError: then; the message has the setting that fits.
    """

    def before_train(self, runner: Runner) -> None:
        """Look at the model as it is trained, of one process or several."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        check_classes(model, runner.train_dataloader.dataset)
        check_topk(model, getattr(getattr(runner.val_loop, 'evaluator', None), 'metrics', []))


MOST_SKIPPED_IN_A_ROW = 20


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Stop a training, or skip the batch, when its loss is not finite.

    Args:
        skip: leave such a batch out, in all processes, with a warning that counts them; otherwise the training stops.

    Raises:
        NonFiniteLossError: unless ``skip``; with it, after ``MOST_SKIPPED_IN_A_ROW`` such batches in a row. In both cases
            instead of writing a checkpoint whose weights are not finite.
    """

    priority = 'VERY_HIGH'

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.skipped = self._in_a_row = 0
        self._batch: Any = None

    def before_train(self, runner: Runner) -> None:
        """With ``skip``, stand between each loss and the optimizer."""
        if self.skip:
            self._guard(runner, runner.optim_wrapper)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the batch, whose images are named if it is skipped."""
        self._batch = data_batch

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Stop if the loss is not finite, unless such batches are skipped."""
        # By now the weights are spoilt, but only in memory; looking before the backward pass would hold up a GPU.
        bad = {name: value for name, value in (outputs or {}).items() if not torch.as_tensor(value).isfinite().all()}
        if bad and 'loss' in bad and not self.skip:
            found = ', '.join(f'{name} is {torch.as_tensor(value).flatten().tolist()}' for name, value in bad.items())
            raise NonFiniteLossError(
                f'training stopped at iteration {runner.iter + 1}: {found}, on the images {image_names(data_batch)}. Look at '
                'these images and their annotations; if they are in order, lower the learning rate, clip gradients, or leave '
                'such batches out with --non-finite-loss skip. Checkpoints written before are good')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Another process's loss, or gradients that overflow under a finite loss, spoil weights without a word here."""
        spoilt = [name for name, value in checkpoint['state_dict'].items()
                   if torch.is_tensor(value) and not value.isfinite().all()]
        if spoilt:
            raise NonFiniteLossError(
                f'training stopped: {len(spoilt)} of {len(checkpoint["state_dict"])} weights '
                f'are not finite any more ({spoilt[0]}), and no checkpoint is made of them; lower the learning rate, or clip '
                'gradients. Checkpoints written before are good')

    def _guard(self, runner: Runner, optim_wrapper: OptimWrapper) -> None:
        """Take what has no finite loss out of ``optim_wrapper``'s hands."""
        update_params = optim_wrapper.update_params

        def update_params_if_finite(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            bad = (~loss.detach().isfinite()).any().int()
            here = bool(bad)
            all_reduce(bad, 'max')  # or else the others would wait for this process's gradients for ever
            if not bad:
                self._in_a_row = 0
                return update_params(loss, *args, **kwargs)
            self.skipped += 1
            self._in_a_row += 1
            found = [line for line in all_gather_object(
                f'{loss.item()} on the images {image_names(self._batch)}' if here else None) if line]
            so_far = 'the first' if self.skipped == 1 else self.skipped
            line = f'batch {runner.iter + 1} is skipped, {so_far} so far: its loss is {"; ".join(found)}'
            runner.logger.warning(line)
            if self._in_a_row == MOST_SKIPPED_IN_A_ROW:
                raise NonFiniteLossError(f'training stopped: {self._in_a_row} batches in a row had no finite loss, so that it '
                                         f'is the weights and not the images; {line}. Lower the learning rate, or clip '
                                         'gradients')

        optim_wrapper.update_params = update_params_if_finite


def image_names(data_batch: object) -> str:
    """The paths of a batch's images, or their ids, as far as its data samples know them."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, Mapping) else data_batch
    names = [str(sample.get('img_path', sample.get('img_id', 'unknown'))) for sample in pytree.tree_leaves(samples)
             if isinstance(sample, BaseDataElement)]
    return ', '.join(names) or 'unknown'
