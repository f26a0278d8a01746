"""Count the parameters, FLOPs and activations of a config's model, part by part; neither data nor weights are needed."""
import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..analysis.flops import Complexity, count_complexity
from ..models import build_model
from .config import add_options, at_least_one, load_config
from .errors import one_line_errors

SHAPES = dict(mmdet=(800, 1280), mmseg=(512, 512), mmpretrain=(224, 224))  # at which counts are usually given


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    add_options(parser)
    parser.add_argument('--shape', nargs=2, type=at_least_one, metavar=('H', 'W'),
                        help='height and width of the image that the backbone gets, in pixels; 800 1280 for detectors, '
                        '512 512 for segmentors, 224 224 for classifiers by default')
    parser.add_argument('--proposals', type=at_least_one, metavar='N',
                        help='for two-stage detectors; model.test_cfg.rpn.max_per_img by default')
    return parser.parse_args(argv)


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Count a config's model and print the table."""
    args = parse_args(argv)
    cfg = load_config(args)
    model = build_model(cfg)
    shape = tuple(args.shape or SHAPES.get(cfg.get('default_scope'), (224, 224)))
    with Console(stderr=True).status('counting'):
        found = count_complexity(model, shape, args.proposals)
    print_table(found, f'{Path(args.config).name}: one image of {shape[0]} x {shape[1]} pixels')


def print_table(found: Complexity, title: str) -> None:
    """A line for each part, indented by its level, and the notes below."""
    table = Table(title=title, caption='1 MAC (multiply-accumulate) = 2 FLOPs; what many papers call FLOPs are MACs')
    table.add_column('part')
    for name in ('parameters', 'GMACs', 'GFLOPs', 'activations (M)'):
        table.add_column(name, justify='right')
    for part in found.parts:
        if part.level == 1:
            table.add_section()
        table.add_row('  ' * part.level + part.name, f'{part.parameters:,}',
                      *(f'{number:.4f}' for number in (part.macs / 1e9, part.flops / 1e9, part.activations / 1e6)))
    console = Console()
    console.width = max(console.width, 100)  # a log has no width of its own
    console.print(table)
    for note in found.notes:
        print(note)
