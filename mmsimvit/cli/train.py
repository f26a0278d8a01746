"""Train a detector, segmentor or classifier from its config."""
import argparse
import signal
import sys
import warnings

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import is_cuda_available, is_npu_available
from mmengine.logging import print_log
from mmengine.registry import MODELS, OPTIMIZERS, DefaultScope

from ..backbones import Backbone
from ..datasets import check_data
from ..engine import build_runner, find_whole_checkpoint
from ..engine.fsdp import SHARDED_STRATEGY
from ..engine.work_dir import check_work_dir, write_checkpoints_whole
from ..errors import ConfigError
from ..models import find_dicts
from ..weights import load_file
from .config import (
    CLASSES_HOOK,
    FLOAT32_ROI_EXTRACTOR,
    NON_FINITE_LOSS_HOOK,
    RESEED_HOOK,
    SHARDED_OPTIM_WRAPPER,
    add_common_arguments,
    add_hook,
    load_config,
)
from .errors import not_registered, one_line_errors
from .launch import cleanup_dist, init_dist


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CKPT',
                        help='go on from a checkpoint; without its name, from the last whole one in the work dir, or '
                        'from the beginning if there is none')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision; needs a GPU')
    parser.add_argument('--amp-dtype', choices=['float16', 'bfloat16'],
                        help="type of --amp; that of the config's optim_wrapper by default, or float16")
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the batch size, from auto_scale_lr.base_batch_size')
    parser.add_argument('--non-finite-loss', choices=['stop', 'skip'], default='stop',
                        help='what to do with a batch whose loss is infinite or no number: stop and name its images, or leave '
                        'it out with a warning (default: %(default)s)')
    add_common_arguments(parser)
    return parser.parse_args(argv)


def configure(args: argparse.Namespace) -> Config:
    """The config to train.

    Raises:
        ConfigError: if the optimizer is unknown.
        CheckpointError: if the checkpoint or the weights to start from are missing, cut short or do not fit.
        SystemExit: for an option that this machine or config does not support.
    """
    cfg = load_config(args)
    if args.amp:
        if not (is_cuda_available() or is_npu_available()):
            raise SystemExit('error: --amp needs a GPU, and none was found; train without it')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.dtype = args.amp_dtype or cfg.optim_wrapper.get('dtype', 'float16')
        if cfg.optim_wrapper.dtype == 'bfloat16':  # it has the range of float32
            cfg.optim_wrapper.setdefault('loss_scale', dict(enabled=False))
            for part in find_dicts(cfg.get('model')):  # MMCV has no RoIAlign for it
                if part.get('type') in ('SingleRoIExtractor', 'mmdet.SingleRoIExtractor'):
                    part['type'] = FLOAT32_ROI_EXTRACTOR
    elif args.amp_dtype:
        raise SystemExit(f'error: --amp-dtype {args.amp_dtype} says in which type --amp computes; give both')
    if (cfg.get('strategy') or {}).get('type') in ('FSDPStrategy', SHARDED_STRATEGY):
        if args.amp:
            raise SystemExit('error: --amp is not for FSDP, which has its own mixed precision; set strategy.model_wrapper.'
                             'mixed_precision=dict(param_dtype=..., reduce_dtype=..., buffer_dtype=...) in the config')
        if cfg.optim_wrapper.get('type', 'OptimWrapper') == 'OptimWrapper':
            cfg.optim_wrapper.type = SHARDED_OPTIM_WRAPPER
        cfg.strategy.type = SHARDED_STRATEGY
        if cfg.strategy.setdefault('state_dict_cfg', 'full') == 'local':
            raise SystemExit("error: state_dict_cfg='local' makes a folder of each checkpoint, which no other run can read or "
                             "go on from; set strategy.state_dict_cfg='full'")
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise SystemExit(f'error: --auto-scale-lr needs auto_scale_lr.base_batch_size, which {args.config} does not '
                             'have; add auto_scale_lr=dict(base_batch_size=...), the batch size that its learning rate is for')
        cfg.auto_scale_lr.enable = True
    check_optimizer(cfg)
    add_hook(cfg, CLASSES_HOOK)
    add_hook(cfg, RESEED_HOOK)
    add_hook(cfg, NON_FINITE_LOSS_HOOK, skip=args.non_finite_loss == 'skip')
    checkpoints = (cfg.get('default_hooks') or {}).get('checkpoint') or ConfigDict()
    if checkpoints.get('max_keep_ckpts') == 1:
        # mmengine removes the old one before it writes the new one, which may fail.
        print_log('max_keep_ckpts is 2 instead of 1, so that there is always a whole checkpoint to resume from')
        checkpoints.max_keep_ckpts = 2
    if args.resume == 'auto':
        checkpoint = find_whole_checkpoint(cfg.work_dir)
        if checkpoint is None:
            print_log(f'nothing to resume from in {cfg.work_dir}: training starts from the beginning')
        else:
            cfg.resume, cfg.load_from = True, checkpoint
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    if cfg.get('load_from'):
        load_file(cfg.load_from)  # for its errors, which name the file
    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    if isinstance(model.get('teacher'), str):
        load_file(model['teacher'])  # likewise
    if cfg.get('resume') and cfg.get('load_from'):
        backbone.pop('init_cfg', None)  # its weights are in the checkpoint, and the file may be gone
    check_initial_weights(backbone)
    return cfg


def check_optimizer(cfg: Config) -> None:
    """Look for the optimizer's name, of whose absence mmengine says only that None is no class.

    Raises:
        ConfigError: if it is unknown; the message says what is near.
    """
    name = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('type')
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
    with scope, OPTIMIZERS.switch_scope_and_registry(None) as registry:
        if isinstance(name, str) and registry.get(name) is None:
            raise ConfigError(not_registered(name, 'optimizer'))


def check_initial_weights(backbone: dict) -> None:
    """Look at the pretrained weights of one of our backbones before any data is read, which can take minutes.

    Args:
        backbone: its config; one of another library is not looked at.

    Raises:
        CheckpointError: if they are missing, broken or of another variant; the message says what to do.
    """
    kind = MODELS.get(backbone['type']) if isinstance(backbone.get('type'), str) else backbone.get('type')
    if not (isinstance(kind, type) and issubclass(kind, Backbone)):
        return
    with torch.device('meta'):
        MODELS.build(backbone).check_pretrained()


@one_line_errors()
def main(argv: list[str] | None = None) -> torch.nn.Module:
    """Train, and give the trained model."""
    args = parse_args(argv)
    cfg = configure(args)
    # Of depth-wise kernels, (C, 1, 3, 3), whose strides differ in the axis of one element alone.
    warnings.filterwarnings('ignore', 'Grad strides do not match bucket view strides')
    init_dist(cfg)
    check_work_dir(cfg.work_dir)
    write_checkpoints_whole()
    check_data(cfg, ('train', 'val') if cfg.get('val_cfg') else ('train', ))
    try:
        model = build_runner(cfg).train()
    except KeyboardInterrupt:
        print(f'interrupted; --resume goes on from the last checkpoint in {cfg.work_dir}, if there is one', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    cleanup_dist()
    return model
