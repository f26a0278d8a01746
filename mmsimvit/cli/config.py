"""What the command lines share: their arguments, and the config that these make."""
import importlib.util
import inspect
import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.runner import FlexibleRunner, Runner

from ..config_files import find_config
from ..errors import ConfigError
from ..stacks import installed_stack

# By their paths, so that the config in a work dir serves the libraries' own tools as well.
MATCH_HOOK = 'mmsimvit.engine.CheckpointMatchHook'
CLASSES_HOOK = 'mmsimvit.engine.ClassesMatchHook'
RESEED_HOOK = 'mmsimvit.engine.ReseedHook'
NON_FINITE_LOSS_HOOK = 'mmsimvit.engine.NonFiniteLossHook'
SHARDED_OPTIM_WRAPPER = 'mmsimvit.engine.ShardedOptimWrapper'
FLOAT32_ROI_EXTRACTOR = 'mmsimvit.engine.roi.Float32RoIExtractor'
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
# What is read of a config beside the arguments of mmengine's runners.
SETTINGS = {'activation_checkpointing', 'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn',
            'tta_model', 'tta_pipeline'}


def add_options(parser: ArgumentParser) -> None:
    """Add ``--cfg-options``, and defaults of all else that ``load_config`` reads beside ``config``."""
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='settings that replace those of the config, such as model.backbone.arch=small or '
                        'optim_wrapper.optimizer.lr=1e-4; a list is written key="[a,b]" or key=a,b, a tuple key="(a,b)"')
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)


def at_least_one(word: str) -> int:
    """The type of an argument that is a number of pixels or of things.

    Raises:
        ArgumentTypeError: for anything but a positive whole number.
    """
    if not word.isdecimal() or int(word) < 1:
        raise ArgumentTypeError(f'must be positive whole numbers, got {word!r}')
    return int(word)


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add what the command lines for training and testing both take, and ``load_config`` reads."""
    parser.add_argument('--work-dir', metavar='DIR', help='where logs and checkpoints go; ./work_dirs/<config name> by default')
    add_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, help='set by torch.distributed.launch')


def load_config(args: Namespace, whole: bool = False) -> Config:
    """The config of a command line, with the settings that the command line replaces.

    Args:
        args: the command line.
        whole: whether a checkpoint must give all parameters of the model.

    Raises:
        ConfigError: if there is no such config, or the command line replaces what nothing reads.
        SystemExit: if the library of its ``default_scope`` is not installed, or mmcv, which that needs.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(find_config(args.config))
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        _make_room_for_weights(cfg, args.cfg_options)
        _check_options(cfg, args.cfg_options)
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    scope = cfg.get('default_scope')
    check_library(scope, f'{args.config} is a config of {scope}')
    for loader in filter(None, (cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test'))):
        if scope == 'mmpretrain':  # whose configs leave this to its tools
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))
        if loader.get('batch_size') is not None:
            at_least(1, loader.batch_size, 'batch_size')
        at_least(0, loader.get('num_workers', 0), 'num_workers')
        if not loader.get('num_workers'):  # of which torch refuses to keep any
            for name in ('persistent_workers', 'prefetch_factor'):
                loader.pop(name, None)
    add_hook(cfg, MATCH_HOOK, whole=whole)
    return cfg


def check_library(scope: str | None, told: str) -> None:
    """
    Args:
        scope: a library's, or another that needs none.
        told: what needs it, for the message.

    Raises:
        SystemExit: if the library is not installed, or mmcv, which it needs.
    """
    if scope not in LIBRARIES:
        return
    has_mmcv = importlib.util.find_spec('mmcv')
    if importlib.util.find_spec(scope) is None:
        more = '' if has_mmcv else '; it also needs mmcv: python -m mmsimvit doctor gives the commands'
        raise SystemExit(f'error: {told}, which is not installed; '
                         f'pip install {installed_stack()[scope]}{" ftfy regex" * (scope == "mmseg")}{more}')
    if not has_mmcv:
        raise SystemExit(f'error: {told}, which needs mmcv, and that is not installed; '
                         'python -m mmsimvit doctor gives the command')


def at_least(least: int, value: object, name: str) -> None:
    """
    Raises:
        ConfigError: if a setting of a data loader is not a whole number, or less than it may be.
    """
    if not isinstance(value, int) or value < least:
        raise ConfigError(f'{name} of a data loader is {value!r}; it must be a whole number, {least} or more')


def _make_room_for_weights(cfg: Config, options: dict[str, Any]) -> None:
    """Let ``init_cfg.checkpoint=FILE`` name the weights to start from also where the config has none."""
    for key in options:
        if not key.endswith('.init_cfg.checkpoint'):
            continue
        node: Any = cfg._cfg_dict
        for part in key.split('.')[:-2]:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and not node.get('init_cfg'):
            node['init_cfg'] = ConfigDict(type='Pretrained')


def _check_options(cfg: Config, options: dict[str, Any]) -> None:
    settings = SETTINGS.union(*(inspect.signature(runner).parameters for runner in (Runner, FlexibleRunner)))
    for key, value in options.items():
        name = key.split('.')[0]
        if name not in settings:
            reason = (f'{name} is a variable of the config file, and what the file made of it stays' if name in cfg
                      else f'there is no setting {name}')
            raise ConfigError(f'--cfg-options {key}={value} would change nothing: {reason}; name the setting itself, such as '
                              'optim_wrapper.optimizer.lr, train_dataloader.batch_size or train_cfg.max_epochs. What code of '
                              'your own reads belongs in the file')
        node: Any = cfg._cfg_dict
        parts = key.split('.')
        for place, part in enumerate(parts, start=1):
            known = [*node] if isinstance(node, dict) else []
            if part not in known and (meant := [other for other in known if _letters(other) == _letters(part)]):
                raise ConfigError(f'--cfg-options {key}={value}: there is no {part}; did you mean {meant[0]}?')
            node = node.get(part) if isinstance(node, dict) else None
            if place < len(parts) and part in known and node is None:
                raise ConfigError(f'--cfg-options {key}={value}: {part} is None in the config, and nothing can be set in that; '
                                  'write the whole of it into the file')


def _letters(name: str) -> str:
    """What is left of a name when an underscore, a capital or a plural is got wrong."""
    return name.lower().replace('_', '').removesuffix('s')


def add_hook(cfg: Config, name: str, **settings: Any) -> None:
    """Add a hook, or give these settings to the one that is there, as it is in a config from a work dir."""
    hooks = cfg.get('custom_hooks') or []
    hook = next((hook for hook in hooks if hook['type'] == name), None)
    if hook is None:
        cfg.custom_hooks = [*hooks, ConfigDict(type=name, **settings)]
    else:
        hook.update(settings)
