import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from ..backbones.dynamic_sparsification import SparsePyramid
from ..datasets.coco import some
from ..errors import CheckpointError, ModelError, NonFiniteLossError, UserError
from ..models import (
    check_classes,
    check_ignored,
    check_image_channels,
    check_losses,
    check_mixing,
    check_topk,
    check_unread,
)
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
                                  f'{runner.max_iters}, the last. For more, start a new training from '
                                  'its weights, with load_from and without --resume')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note how many images a step takes, in all processes."""
        checkpoint['meta']['images_per_step'] = images_per_step(runner)

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
        if self.whole or runner._resume:
            check_order(checkpoint, runner.train_dataloader if runner._resume else runner.test_dataloader,
                        str(runner._load_from))
        if runner._resume:
            warn_of_kept_settings(runner, checkpoint)
        if self.whole:
            found.check_predictions(str(runner._load_from), model)
        log = runner.logger.info if found.complete else runner.logger.warning
        log(line)


def check_order(checkpoint: dict, loader: DataLoader, name: str) -> None:
    """Compare the classes that a checkpoint was trained with and those of the data.

    Raises:
        CheckpointError: if they are the same in another order, or some more; of other names a warning says so.
    """
    trained = ((checkpoint.get('meta') or {}).get('dataset_meta') or {}).get('classes')
    _compare_classes(f'checkpoint {name} was trained with', trained, 'the data', _classes_of(loader.dataset), CheckpointError)


def check_validation(train: object, val: object) -> None:
    """Compare the classes of two data sets.

    Raises:
        ModelError: if they are the same in another order, or some more; of other names a warning says so.
    """
    _compare_classes('the data of the training have', _classes_of(train), 'the validation', _classes_of(val), ModelError)


def _classes_of(dataset: object) -> Sequence[str] | None:
    info = getattr(dataset, 'metainfo', None)
    return info.get('classes') if isinstance(info, dict) else None


def _compare_classes(one: str, trained: Sequence[str] | None, other: str, given: Sequence[str] | None,
                     error: type[UserError]) -> None:
    if not trained or not given or isinstance(given, str) or list(trained) == list(given):
        return
    told = (f'{one} the classes {some(list(trained))}, but those of {other} are {some(list(given))}: label 0 is '
            f'{trained[0]!r} to the one and {given[0]!r} to the other')
    if set(trained) & set(given):
        raise error(f'{told}. Give the config, and the categories of annotation files, the classes and the order of the '
                    'training')
    print_log(told, 'current', logging.WARNING)


def images_per_step(runner: Runner) -> int | None:
    """How many images the optimizer sees between two steps, in all processes; None where batches are made in a way of their
    own."""
    loader = getattr(runner, 'train_dataloader', None)
    size = getattr(loader, 'batch_size', None) or getattr(getattr(loader, 'batch_sampler', None), 'batch_size', None)
    times = getattr(getattr(runner, 'optim_wrapper', None), '_accumulative_counts', 1)
    return size * get_world_size() * times if isinstance(size, int) else None


# What a schedule counts, and no setting.
COUNTERS = {'last_step', 'base_values', '_global_step', '_last_value', '_step_count', 'param_name', 'by_epoch', 'verbose'}


def warn_of_kept_settings(runner: Runner, checkpoint: dict) -> None:
    """Name settings of the optimizer and of the schedule that mmengine takes from the checkpoint that is resumed from, and not
    from the config, and a batch size that has changed."""
    then, now = (checkpoint.get('meta') or {}).get('images_per_step'), images_per_step(runner)
    if then and now and then != now:
        runner.logger.warning(f'a step takes {now} images, but took {then} in the training that is resumed from '
                              f'{runner._load_from}: its rates are for {then}, and an epoch, and schedules that count '
                              'iterations, have another length. The batch size is train_dataloader.batch_size, times the '
                              'processes, times accumulative_counts')
    kept = []
    schedulers, saved = runner.param_schedulers, checkpoint.get('param_schedulers')
    if isinstance(schedulers, list) and isinstance(saved, list):
        for scheduler, state in zip(schedulers, saved):
            new = scheduler.state_dict()
            kept += [f'{key} of {type(scheduler).__name__} ({state[key]}, not {new[key]})' for key in new.keys() & state.keys()
                     if key not in COUNTERS and isinstance(new[key], (int, float)) and new[key] != state[key]]
        if len(schedulers) != len(saved):
            kept.append(f'the schedule of {len(saved)} parts, not {len(schedulers)}')
    groups = getattr(getattr(runner.optim_wrapper, 'optimizer', None), 'param_groups', None)
    before = (checkpoint.get('optimizer') or {}).get('param_groups')
    if groups and before:
        for key in groups[0].keys() & before[0].keys() - {'params', 'lr'}:
            pairs = {(str(old.get(key)), str(new.get(key))) for old, new in zip(before, groups) if old.get(key) != new.get(key)}
            kept += [f'{key} of the optimizer ({old}, not {new})' for old, new in sorted(pairs)[:1]]
    if kept:
        runner.logger.warning(f'resuming goes on with settings of {runner._load_from} that the config has differently: the '
                              f'schedule and rates are those of the checkpoint, {", ".join(sorted(kept))}. For those of the '
                              'config start a new training from its weights, with load_from and without --resume')


@HOOKS.register_module()
class ReseedHook(Hook):
    """Draw the random numbers of each iteration from a seed of its own, so that a resumed training goes on with those that
    the uncut one would have had.

    The seed depends on the run's seed, the rank and the iteration. Workers that load data have their own random numbers:
    where there are none, where they are started anew each epoch (``persistent_workers=False``), or an iteration-based loop
    loads again what it skips, they too are the same.
    """

    priority = 'LOWEST'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the first iteration of the epoch, and the images that an iteration-based loop loads again and skips."""
        self._reseed(runner, runner.iter)
        loop: Any = runner.train_loop
        # The fork goes past images without loading them.
        if runner.iter and hasattr(loop, 'dataloader_iterator') and not hasattr(loop.dataloader_iterator, 'skip_iter'):
            loop.dataloader_iterator = self._load_again(runner, loop.dataloader_iterator, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Seed the next iteration."""
        self._reseed(runner, runner.iter + 1)

    def after_val(self, runner: Runner) -> None:
        """Seed the next iteration, whatever the validation drew."""
        self._reseed(runner, runner.iter)

    def _load_again(self, runner: Runner, batches: Iterator, skipped: int) -> Iterator:
        for iteration in range(skipped + 1):
            self._reseed(runner, iteration)
            yield next(batches)
        yield from batches

    @staticmethod
    def _reseed(runner: Runner, iteration: int) -> None:
        seed = int(np.random.SeedSequence([runner.seed, get_rank(), iteration]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


@HOOKS.register_module()
class ClassesMatchHook(Hook):
    """Stop a training before it begins if a head has fewer classes than the data, which MMDetection would not notice, or than
    the validation asks for, if the validation has them in another order, or if losses, ignored pixels or the channels of
    images are not those of the model.

    ``mmdet.NumClassCheckHook`` is for detectors alone, wants equal numbers, also of masks that are of no class, and ends with a
    stack trace.

    Raises:
        ModelError: then; the message has the setting that fits.
    """

    def before_train(self, runner: Runner) -> None:
        """Look at the model as it is trained, of one process or several."""
        val = getattr(getattr(runner.val_loop, 'dataloader', None), 'dataset', None)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        check_classes(model, runner.train_dataloader.dataset)
        if not hasattr(model, 'language_model'):  # which finds what it is told in words
            check_validation(runner.train_dataloader.dataset, val)
        check_mixing(model)
        check_losses(model)
        check_ignored(model, runner.train_dataloader.dataset)
        check_unread(model, getattr(runner, 'settings', None), getattr(runner, 'seen', None),
                     stops=runner.distributed and not runner.cfg.get('find_unused_parameters'))
        check_topk(model, getattr(getattr(runner.val_loop, 'evaluator', None), 'metrics', []))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Look at the channels of the first images."""
        if batch_idx == 0:
            check_image_channels(runner.model.module if is_model_wrapper(runner.model) else runner.model, data_batch)


@HOOKS.register_module()
class RatioLossHook(Hook):
    """Train the predictors of dynamic spatial sparsification, in any model of the three libraries, to keep as many positions as
    the backbone's ``keep_ratios`` say.

    The loss ``loss_ratio`` joins those of the model: the squared distance of the kept part from the ratio, mean over predictors
    and images (2207.01580, section 3.3). With a frozen stage 3 there is nothing to train, and no such loss.

    Args:
        weight: factor of the loss, published 10.

    Raises:
        ModelError: before training, if the model has no such backbone.
    """

    def __init__(self, weight: float = 10.) -> None:
        self.weight = weight
        self._handles: list = []
        self._distances: list[Tensor] = []

    def before_train(self, runner: Runner) -> None:
        """Listen to the decisions of the model that is trained, and to its losses."""
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        backbones = [module for module in model.modules() if isinstance(module, SparsePyramid)]
        if not backbones:
            raise ModelError('RatioLossHook is for backbones with dynamic spatial sparsification, DynamicConvNeXt and '
                             f'DynamicSwin, and {type(model).__name__} has none; take it out of custom_hooks')
        for backbone in backbones:
            for number, predictor in enumerate(backbone.predictors):
                self._handles.append(predictor.gate.register_forward_hook(partial(self._measure, backbone, number)))
        self._handles += [model.register_forward_pre_hook(self._forget), model.register_forward_hook(self._add)]

    def after_train(self, runner: Runner) -> None:
        """Leave the model as it was."""
        while self._handles:
            self._handles.pop().remove()

    def _measure(self, backbone: SparsePyramid, number: int, gate: nn.Module, args: tuple, decision: Tensor) -> None:
        self._distances.append((decision.float().mean(1) - backbone.keep_ratios[number]).square())

    def _forget(self, model: nn.Module, args: tuple) -> None:
        self._distances = []  # of a backbone that was called alone

    def _add(self, model: nn.Module, args: tuple, losses: Any) -> None:
        distances, self._distances = self._distances, []
        if distances and isinstance(losses, dict):
            losses['loss_ratio'] = self.weight * torch.cat(distances).mean()


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
