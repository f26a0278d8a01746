"""What the command lines for training and testing share."""
import importlib.util
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction

# By its path, so that the config in a work dir serves the libraries' own tools as well.
MATCH_HOOK = 'mmsimvit.engine.CheckpointMatchHook'
PACKAGES = {'mmdet': 'mmdet', 'mmseg': 'mmsegmentation', 'mmpretrain': 'mmpretrain'}


def add_common_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('--work-dir', metavar='DIR', help='where logs and checkpoints go; ./work_dirs/<config name> by default')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='settings that replace those of the config, such as optim_wrapper.optimizer.lr=1e-4; a '
                        'list is written key="[a,b]" or key=a,b')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')


def load_config(args: Namespace) -> Config:
    """The config of a command line, with the settings that the command line replaces.

    Raises:
        FileNotFoundError: if there is no such config.
        SystemExit: if the library of its ``default_scope`` is not installed.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    scope = cfg.get('default_scope')
    if scope in PACKAGES and importlib.util.find_spec(scope) is None:
        raise SystemExit(f'error: {args.config} is a config of {PACKAGES[scope]}, which is not installed; '
                         f'pip install {PACKAGES[scope]}')
    if scope == 'mmpretrain':
        # Its configs leave this to its tools.
        for split in ('train', 'val', 'test'):
            if cfg.get(f'{split}_dataloader'):
                cfg[f'{split}_dataloader'].setdefault('collate_fn', ConfigDict(type='default_collate'))
    hooks = cfg.get('custom_hooks') or []
    if not any(hook['type'] == MATCH_HOOK for hook in hooks):  # a config from a work dir has it already
        cfg.custom_hooks = [*hooks, ConfigDict(type=MATCH_HOOK)]
    return cfg
