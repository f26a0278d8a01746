"""Measure central attention and whole backbones side by side: time, peak memory and what is kept for the backward pass.

Candidates take turns in one process, and what is compared are the ratios of one round, so that a busy moment of the machine
meets all of them.
"""
import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from ..analysis.benchmark.candidates import COPY, OPERATIONS, PEERS, backbone_candidate, operation_candidates
from ..analysis.benchmark.measure import STEPS, Candidate, measure
from ..analysis.benchmark.mmcv_ops import COMPILED, TORCHVISION, mmcv_cases
from ..analysis.benchmark.report import environment, print_table, records, write
from .config import at_least_one

SHAPES = ['2,200,334,64,1', '2,100,167,128,2', '2,50,84,320,5', '32,56,56,64,1']  # stages 1 to 3 at 800 x 1333; stage 1 at 224


def numbers(count: int, separator: str) -> Callable[[str], tuple[int, ...]]:
    """The type of an argument that is so many positive whole numbers with ``separator`` between them."""
    def parse(word: str) -> tuple[int, ...]:
        values = tuple(int(part) if part.isdigit() else 0 for part in word.split(separator))
        if len(values) != count or min(values) < 1:
            raise argparse.ArgumentTypeError(f'must be {count} positive whole numbers separated by "{separator}", got {word!r}')
        return values
    return parse


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line, and choose the backends and the baseline that it leaves open."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', metavar='MODEL',
                        help='backbones: NAME:ARCH of a registered model (SimViT:tiny; SimViT:tiny,with_cp=True), '
                        'published:SimViT:ARCH for the published formulation, BACKEND:SimViT:ARCH for another backend '
                        'of central attention, a config file, or one of ' + ', '.join(PEERS))
    parser.add_argument('--op', choices=OPERATIONS, help='measure this operation instead of backbones; '
                        "mmcv: MMCV's operators, and Mask R-CNN with them")
    parser.add_argument('--backends', nargs='+', metavar='NAME',
                        help='implementations of the operation: published, reference, composite, eager, triton '
                        '(default: published, and what this machine chooses); '
                        f'of mmcv: {COMPILED}, {TORCHVISION} (default: both)')
    parser.add_argument('--shapes', nargs='+', type=numbers(5, ','), metavar='B,H,W,C,HEADS',
                        default=[numbers(5, ',')(shape) for shape in SHAPES],
                        help='of the operation: batch, height, width, channels, heads (default: ' + ' '.join(SHAPES) + ')')
    parser.add_argument('--kernel-sizes', nargs='+', type=at_least_one, default=[3], metavar='K',
                        help='of the operation: the window is K x K (default: 3)')
    parser.add_argument('--sizes', nargs='+', type=numbers(2, 'x'), metavar='HxW', default=[(512, 512)],
                        help='of the images that backbones get (default: 512x512)')
    parser.add_argument('--batch-sizes', nargs='+', type=at_least_one, default=[1], metavar='B',
                        help='of the images that backbones get (default: 1)')
    parser.add_argument('--steps', nargs='+', choices=STEPS, default=list(STEPS),
                        help='forward: without gradients; training: forward and backward')
    parser.add_argument('--baseline', help='candidate that ratios are given to (default: the first)')
    parser.add_argument('--rounds', type=at_least_one, default=7, metavar='N',
                        help='how often each candidate is measured, in turns; fewer are quicker and less certain (default: 7)')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32',
                        help='backbones: by autocast (default: float32)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='cpu, cuda, cuda:1 ... (default: a GPU if there is one)')
    parser.add_argument('--threads', type=at_least_one, default=torch.get_num_threads(), metavar='N',
                        help="on the CPU (default: torch's choice)")
    parser.add_argument('--out', type=Path, metavar='DIR', help='write benchmark.json and benchmark.png there')
    args = parser.parse_args(argv)
    if bool(args.op) == bool(args.models):
        parser.error('name backbones, or an operation with --op')
    if args.op == 'mmcv':
        args.backends = args.backends or [COMPILED, TORCHVISION]
    elif args.op and not args.backends:
        args.backends = ['published', 'triton' if args.device.startswith('cuda') else 'eager']
    names = args.backends if args.op else args.models
    args.baseline = args.baseline or names[0]
    if args.baseline not in names:
        parser.error(f'--baseline must be one of the candidates {", ".join(names)}, got {args.baseline}')
    return args


def cases(args: argparse.Namespace, dtype: torch.dtype,
          device: torch.device) -> Iterator[tuple[str, Callable[[], list[Candidate]]]]:
    """A title and a function that gives the candidates, for every input."""
    if args.op == 'mmcv':
        yield from mmcv_cases(args.backends, device)
    elif args.op:
        # The copy tells how fast this memory is: print_table's floor.
        for shape in args.shapes:
            for kernel_size in args.kernel_sizes:
                title = 'x'.join(map(str, shape[:4])) + f', {shape[4]} head{"s" if shape[4] > 1 else ""}'
                title += f', k={kernel_size}' if kernel_size != 3 else ''
                yield title, partial(operation_candidates, [*args.backends, COPY], shape, kernel_size, dtype, device)
    else:
        def backbones(batch: int, size: tuple[int, int]) -> list[Candidate]:
            return [backbone_candidate(word, batch, size, dtype, device) for word in args.models]

        for size in args.sizes:
            for batch in args.batch_sizes:
                yield f'{size[0]}x{size[1]}, batch {batch}', partial(backbones, batch, size)


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure, print, and give one dict for each candidate, input and step.

    Raises:
        SystemExit: if a candidate cannot be built, or nothing could be measured.
    """
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    if device.type == 'cuda':
        torch.cuda.set_device(device)  # that events are recorded on
    rows, about = [], environment(device, args.threads, args.dtype)
    for title, candidates in cases(args, dtype, device):
        try:
            found = candidates()
        except (ValueError, KeyError, RuntimeError) as error:
            raise SystemExit(f'error: {error}') from error
        try:
            measure(found, args.steps, args.rounds, partial(show_progress, title))
        except torch.OutOfMemoryError as error:
            show_progress()
            print(f'{title}: out of memory, left out: {error}', file=sys.stderr)
            continue
        rows += records(title, found, args.baseline)
        if args.out:
            write(rows, about, args.out)  # after every case, so that an interruption loses one
    show_progress()
    if not rows:
        raise SystemExit('error: nothing could be measured')
    print_table(rows, about)
    if args.out:
        print(f'wrote {args.out}/benchmark.json and {args.out}/benchmark.png')
    return rows


def show_progress(title: str = '', step: str = '') -> None:
    """On one line of a terminal; in a log, each on its own."""
    line = f'{title}: {step}' if title else ''
    if sys.stderr.isatty():
        print(f'\r\033[K{line}', end='', file=sys.stderr, flush=True)
    elif line:
        print(line, file=sys.stderr, flush=True)
