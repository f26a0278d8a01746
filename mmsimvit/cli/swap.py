"""Put another backbone into a config of MMDetection, MMSegmentation or MMPreTrain: write a short config that inherits it and
changes what has to change, and prove it by a forward pass without data.
"""
import argparse
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from ..dry_run import dry_run
from ..errors import ConfigError, ModelError
from ..files import atomic_write
from ..fitting import build
from ..swap import scope_of, swap
from .errors import one_line_errors


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a file, or one of a library: mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    parser.add_argument('--backbone', required=True, metavar='TYPE:ARCH', help='such as SimViT:tiny; or a TYPE alone')
    parser.add_argument('--backbone-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='more arguments of the backbone')
    parser.add_argument('--imports', nargs='+', default=[], metavar='MODULE', help='what registers a backbone of your own')
    parser.add_argument('--out', metavar='FILE', help='the new config; ./<config>_<type>_<arch>.py by default')
    parser.add_argument('--keep-optimizer', action='store_true', help='leave optimizer and schedule as they are')
    return parser.parse_args(argv)


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Write the config, build it, and run it.

    Raises:
        ConfigError: if the file exists, or there is no such config.
        ModelError: if the model cannot be made to fit.
    """
    args = parse_args(argv)
    kind, _, arch = args.backbone.partition(':')
    backbone: dict[str, Any] = dict(type=kind, **({'arch': arch} if arch else {}), **args.backbone_options)
    source = Path(args.config.partition('::')[2] or args.config).stem
    out = Path(args.out or f'{"_".join(filter(None, [source, kind.lower(), arch]))}.py')
    if out.exists():
        raise ConfigError(f'{out} exists already; name another with --out')
    done = swap(args.config, backbone, args.imports, args.keep_optimizer, str(out.parent))

    def write(path: Path) -> None:
        path.write_text(done.text)
        cfg = Config.fromfile(path)
        seen = dry_run(build(cfg.model, scope_of(cfg)))  # of what was written, before it gets its name
        if seen != done.seen:
            raise ModelError(f'the config that was written is not the one that was tried: {seen}, not {done.seen}')

    atomic_write(out, write)
    for note in done.notes:
        print(f'WARNING: {note}')
    print(f'{out}: {kind} gives maps of {done.seen.widths} channels and strides {done.seen.strides}; built, and run forward')
