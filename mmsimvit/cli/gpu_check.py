"""Check and measure what a GPU does with this package, the most valuable first, in a given number of minutes.

Every result is on disk as soon as it is there: results.jsonl, a line each, and gpu_check.md, a table for each step. A step
that fails is reported, and the others run. Without a GPU, --rehearse runs the steps on tiny inputs, with Triton's interpreter.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..analysis.gpu import Settings, stop

STEPS = {  # in the order in which they run -> the largest share of the time that each may take
    'environment': 0.08,
    'correctness': 0.2,
    'speed': 0.12,
    'shifted': 0.12,
    'backbones': 0.2,
    'demo': 0.2,
    'training_step': 0.12,
    'tiles': 0.12,
    'real_images': 0.2,
    'processes': 0.2,
    'compiled': 0.4,
    'rivals': 0.3,
    'sanitizer': 0.2,
    'export': 0.2,
    'windows': 0.5,
}
PATIENCE = 20  # seconds that a step gets beyond its share, before it is stopped from outside


Step = Callable[[Settings], Iterator[dict[str, Any]]]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=8., help='for all steps together (default: 8)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu_check'), metavar='DIR',
                        help='where results go (default: %(default)s)')
    parser.add_argument('--steps', nargs='+', choices=STEPS, default=list(STEPS), metavar='STEP',
                        help='these alone, of: ' + ', '.join(STEPS))
    parser.add_argument('--data', type=Path, metavar='DIR', help='for the step real_images: a folder with train/, val/ and '
                        'annotations/instances_{train,val}.json in the format of COCO')
    parser.add_argument('--rehearse', action='store_true', help='on the CPU, with tiny inputs')
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        parser.error(f'--minutes must be positive, got {args.minutes}')
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the steps in a process of their own, and in a new one after each that was stopped; exit with 1 if one failed."""
    args = parse_args(argv)
    if args.worker:
        work(args)
        return
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit('error: torch finds no GPU; --rehearse runs all steps on the CPU, with tiny inputs')
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / 'results.jsonl'
    results.write_text('')
    ends = time.monotonic() + 60 * args.minutes
    environment = {**os.environ, **({'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': ''} if args.rehearse else {})}
    pending = list(args.steps)
    while pending and time.monotonic() < ends:
        command = [sys.executable, '-m', 'mmsimvit', 'gpu_check', '--worker', '--steps', *pending, '--out', str(args.out),
                   '--minutes', str((ends - time.monotonic()) / 60)]
        command += ['--data', str(args.data)] * bool(args.data) + ['--rehearse'] * args.rehearse
        worker = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            reason = watch(worker, results, ends, args.minutes)
        finally:
            stop(worker, 10)  # also where Ctrl-C ends this process, of which one in a session of its own learns nothing
        rows = read(results)
        begun, ended = ({row['step'] for row in rows if row['case'] == case} for case in ('begun', 'all'))
        left = [step for step in pending if step not in ended]
        if left and reason and (left[0] in begun or left == pending) and time.monotonic() < ends + PATIENCE:
            record(args.out, dict(step=left[0], case='all', ok=False, note=reason))
            left = left[1:]
        pending = left
    for step in pending:
        record(args.out, dict(step=step, case='all', ok=None, note='not run: no time was left'))
    rows = read(results)
    failed = [f'{row["step"]}, {row["case"]}' for row in rows if row.get('ok') is False]
    print(f'\n{(args.out / "gpu_check.md").read_text()}\nwrote {args.out}/results.jsonl and {args.out}/gpu_check.md')
    if failed:
        sys.exit('failed: ' + '; '.join(failed))


def watch(worker: subprocess.Popen, results: Path, ends: float, minutes: float) -> str:
    """Wait for a worker; stop it where one of its steps takes too long. Give why it ended early, or nothing."""
    def begun() -> list[str]:
        return [row['step'] for row in read(results) if row['case'] == 'begun']

    step, began, before = '', time.monotonic(), len(begun())
    while worker.poll() is None:
        time.sleep(0.2)
        running = begun()[before:]
        if running and running[-1] != step:
            step, began = running[-1], time.monotonic()
        share = 60 * minutes * STEPS.get(step, 0.2)
        if time.monotonic() > min(began + share, ends) + PATIENCE:
            stop(worker, 10)
            return f'stopped after {time.monotonic() - began:.0f} s'
    return f'its process ended with status {worker.returncode}' if worker.returncode else ''


def work(args: argparse.Namespace) -> None:
    """Run steps one after the other, as a worker."""
    from ..analysis.gpu import attention, jobs, models
    functions: dict[str, Step] = {name: getattr(module, name) for module in (attention, models, jobs) for name in module.STEPS}
    ends = time.monotonic() + 60 * args.minutes
    device = 'cpu' if args.rehearse else 'cuda'
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped'))  # so that what a step started is stopped too
    for name in args.steps:
        began = time.monotonic()
        if began > ends:
            return
        record(args.out, dict(step=name, case='begun'))
        end = min(ends, began + 60 * args.minutes * STEPS[name])
        try:
            for row in functions[name](Settings(device, args.rehearse, args.out, args.data, end)):
                record(args.out, dict(step=name, **row))
                if time.monotonic() > end:
                    record(args.out, dict(step=name, case='the rest', ok=None, note='not run: no time was left'))
                    break
            problem = ''
        except Exception as error:  # whatever goes wrong in a step, the others are still to be seen
            traceback.print_exc()
            problem = f'{type(error).__name__}: {error}'.splitlines()[0][:300]
        record(args.out, dict(step=name, case='all', ok=not problem, seconds=time.monotonic() - began, note=problem))
        if problem and device != 'cpu':
            torch.cuda.synchronize()  # if the card is in a state in which nothing runs any more, this process ends here


def record(folder: Path, row: dict[str, Any]) -> None:
    """Add a result, and write the tables anew."""
    with (folder / 'results.jsonl').open('a') as file:
        file.write(json.dumps(row) + '\n')
    rows = read(folder / 'results.jsonl')
    (folder / 'gpu_check.md').write_text('\n'.join(table(step, [row for row in rows if row['step'] == step]) for step in STEPS
                                                  if any(row['step'] == step for row in rows)))
    if row['case'] != 'begun':
        words = (f'{key} {show(value)}' for key, value in row.items() if value not in ('', None))
        print(', '.join(words), file=sys.stderr, flush=True)


def read(results: Path) -> list[dict[str, Any]]:
    """The results so far; a line that is being written is left out."""
    lines = results.read_text().split('\n')[:-1] if results.is_file() else []
    return [json.loads(line) for line in lines]


def table(step: str, rows: list[dict[str, Any]]) -> str:
    """A Markdown table of a step's results."""
    rows = [row for row in rows if row['case'] != 'begun']
    columns = list(dict.fromkeys(key for row in rows for key in row if key != 'step'))
    lines = [f'## {step}', '', '| ' + ' | '.join(columns) + ' |', '|' + '---|' * len(columns)]
    lines += ['| ' + ' | '.join(show(row.get(column)) for column in columns) + ' |' for row in rows]
    return '\n'.join(lines) + '\n'


def show(value: object) -> str:
    """A value as a table has it."""
    if isinstance(value, bool):
        return 'yes' if value else 'NO'
    if isinstance(value, float):
        return f'{value:.3g}' if abs(value) < 1000 else f'{value:.0f}'
    return '' if value is None else str(value).replace('|', '/').replace('\n', ' ')
