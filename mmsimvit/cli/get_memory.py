"""Say what training a config's model needs of a GPU's memory: measured for the maps that wait for the backward pass, computed
for parameters, gradients and optimizer. Runs on the CPU, in float32; neither data nor weights are needed.

A GPU needs more than the sum: what an operation needs while it runs, cuDNN's workspaces, and what the allocator cannot use.
"""
import argparse
from pathlib import Path

from ..analysis.memory import measure_training_memory
from ..models import build_model
from .config import add_options, at_least_one, load_config
from .errors import one_line_errors


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    add_options(parser)
    parser.add_argument('--shape', nargs=2, type=at_least_one, metavar=('H', 'W'), default=[800, 1344],
                        help='height and width of the images, in pixels (default: 800 1344, a padded 800 x 1333); what the '
                        "config's training would pad is padded here, too")
    parser.add_argument('--batch-size', type=at_least_one, metavar='N', default=1,
                        help='images on one GPU (default: 1; UPerNet and PSPNet need 2 or more)')
    return parser.parse_args(argv)


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Measure a config's model and print the sum."""
    args = parse_args(argv)
    cfg = load_config(args)
    found = measure_training_memory(build_model(cfg), cfg.default_scope, args.batch_size, tuple(args.shape))
    if found.shape != tuple(args.shape):
        print(f'{args.shape[0]} x {args.shape[1]} pixels are padded to {found.shape[0]} x {found.shape[1]}, as the '
              'data_preprocessor of the config does when it trains')
    print(f'{Path(args.config).name}, {args.batch_size} x {found.shape[0]} x {found.shape[1]} pixels, float32\n'
          f'parameters, gradients, Adam (computed): {found.states / 2**30:.2f} GiB\n'
          f'kept for the backward pass (measured):  {found.saved_activations / 2**30:.2f} GiB, '
          f'{found.saved_activations / 2**30 / args.batch_size:.2f} per image\n'
          f'sum:                                    {(found.states + found.saved_activations) / 2**30:.2f} GiB')
