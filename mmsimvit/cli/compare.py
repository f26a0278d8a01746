"""Compare backbones on your data under one protocol: search a learning rate for each, train each with several seeds, measure
what it costs, and write results.json, results.csv and report.html with intervals.

  python -m mmsimvit compare SimViT:micro pvtv2-b0 mmdet.ResNet:18 --data data/camvid --iterations 2000

The same command goes on where an interrupted one was, and adds what is new: a backbone, a seed. What is done is not run again.
"""
import argparse
import shlex
import sys
import warnings
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import DictAction

from ..compare.measure import TRAINING, measure_candidates
from ..compare.plan import (
    TASKS,
    Candidate,
    Job,
    Protocol,
    base_config,
    check_budget,
    check_protocol,
    first_reason,
    note_backbones,
    note_protocol,
    read_candidates,
    read_json,
    search_config,
    search_jobs,
    seed_jobs,
    train_size,
    write_protocol,
    write_training,
)
from ..compare.queue import alone_in, run_jobs, run_stress
from ..compare.record import write_json
from ..compare.report import write_report
from ..compare.results import best_rates, collect, flat_rows, quartiles, write_results
from ..compare.slurm import STAGES, submit, write_scripts
from ..datasets.unwrap import unwrap_dataset
from ..errors import ConfigError
from .config import at_least_one, check_library
from .errors import one_line_errors


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    default = Protocol()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('backbones', nargs='+', metavar='BACKBONE',
        help='[LABEL=]NAME[:ARCH][,ARGUMENT=VALUE...]: SimViT:micro, mmdet.ResNet:18, timm.NAME, pvtv2-b0, or a config file; '
        'pretrained=FILE are weights to start from, random ones without')
    add('--task', choices=sorted(TASKS), default=default.task, help='(default: %(default)s)')
    add('--data', default=default.data, metavar='DATA',
        help='a folder as ADE20K or CamVid have it, a config whose data is taken, or shapes, which are generated '
        '(default: %(default)s)')
    add('--head', metavar='NAME',
        help='a file of configs/_base_/models: semfpn, upernet, or semfpn_small_heads, which is the default')
    add('--iterations', type=int, default=default.iterations, metavar='N', help='of each training (default: %(default)s)')
    add('--minutes', type=float, metavar='M',
        help='of each training instead, as measured at the beginning: a faster backbone has more iterations')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2], metavar='SEED', help='(default: 0 1 2)')
    add('--rates', type=float, nargs='+', default=default.rates, metavar='RATE',
        help='learning rates of AdamW, of which each backbone gets the best; one is not searched '
        f'(default: {" ".join(map(str, default.rates))})')
    add('--search-images', type=at_least_one, default=default.search_images, metavar='N',
        help='training images with which rates are searched, a fifth of them to score (default: %(default)s)')
    add('--batch-size', type=at_least_one, default=default.batch_size, metavar='B', help='(default: %(default)s)')
    add('--crop-size', type=at_least_one, default=default.crop_size, metavar='PIXELS',
        help="of a folder's training images (default: %(default)s)")
    add('--evaluations', type=at_least_one, default=default.evaluations, metavar='N',
        help='of each training, evenly (default: %(default)s)')
    add('--validation', metavar='NAME', help='the folder to validate on, such as test')
    add('--reduce-zero-label', action=argparse.BooleanOptionalAction,
        help="whether 0 in label maps stands for none (default: in ADE20K's layout)")
    add('--sizes', type=float, nargs='+', default=[], metavar='FACTOR',
        help='evaluate at test images of these times their size as well, such as 0.5 0.75 1.5 2')
    add('--severities', type=int, nargs='+', choices=range(1, 6), default=[], metavar='N',
        help='evaluate on noise, blur, low contrast, fog and JPEG of these severities, 1 to 5, as well')
    add('--goal', type=float, metavar='SCORE',
        help='to which the seconds of training are told (default: what the last backbone reaches)')
    add('--workers', type=int, default=default.workers, metavar='N',
        help='processes that load data, for each training (default: %(default)s)')
    add('--rounds', type=at_least_one, default=7, metavar='N', help='of timing, in turns (default: %(default)s)')
    add('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
        help='settings of the config for all backbones')
    add('--amp', action='store_true', help='train with automatic mixed precision; needs a GPU')
    add('--out-dir', type=Path, default=Path('work_dirs/compare'), metavar='DIR', help='(default: %(default)s)')
    add('--jobs', type=at_least_one, default=1, metavar='N',
        help='trainings at a time, each on a GPU of its own (default: %(default)s)')
    add('--slurm', metavar='OPTIONS',
        help='submit batch jobs with these options of sbatch, such as --slurm="--partition=gpu --gres=gpu:1", and end; --jobs '
        'is how many run at a time')
    add('--stage', choices=STAGES, help='one part alone, as batch jobs run them')
    add('--number', type=int, default=0, metavar='N', help='of the training in --stage search or train')
    add('--plan', action='store_true', help='write the configs and run nothing')
    add('--report', action='store_true', help='run nothing; report what is done')
    args = parser.parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    return args


class Comparison:
    """A comparison as its command line has it: looked at, with its configs for all written.

    Raises:
        ConfigError: without SciPy.
        UserError: for what would end a training, before one is begun.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out_dir
        check_library(TASKS[args.task].scope, f'--task {args.task} trains models of {TASKS[args.task].scope}')
        if find_spec('scipy') is None:  # which MMPreTrain alone does not bring
            raise ConfigError('intervals are computed with SciPy, which is not installed: pip install scipy')
        self.protocol = Protocol(
            task=args.task, data=args.data, head=args.head or TASKS[args.task].head,
            iterations=None if args.minutes is not None else args.iterations, minutes=args.minutes,
            rates=tuple(args.rates), batch_size=args.batch_size, crop_size=args.crop_size,
            evaluations=args.evaluations, search_images=args.search_images, validation=args.validation,
            reduce_zero_label=args.reduce_zero_label, workers=args.workers, amp=args.amp, options=args.cfg_options)
        check_budget(self.protocol, args.seeds, args.sizes)
        self.cfg = base_config(self.protocol)
        sets = check_protocol(self.cfg)
        given = unwrap_dataset(self.cfg.val_dataloader.dataset)[0].get('metainfo') or {}
        colours = given.get('palette') or getattr(type(sets['val'][0]), 'METAINFO', {}).get('palette')  # or else random ones
        self.info = {**sets['val'][0].metainfo, 'palette': colours}
        self.candidates = read_candidates(args.backbones, self.cfg)
        first_reason(self.candidates)
        for candidate in self.candidates:
            if not candidate.fit:
                print(f'{candidate.label} is left out: {candidate.reason}', file=sys.stderr)
        self.measured = self._read_measured()
        self.search = search_config(self.cfg, sets, self.protocol.search_images) if len(self.protocol.rates) > 1 else None
        note_protocol(self.out, self.protocol)
        write_protocol(self.out, 'protocol.py', self.cfg)
        if self.search:
            write_protocol(self.out, 'search.py', self.search)
        note_backbones(self.out, self.candidates)

    def _read_measured(self) -> dict[str, Any]:
        path = self.out / 'measured.json'
        return read_json(path) if path.is_file() else {}

    def measure(self) -> None:
        """Count and time all backbones, unless that is done."""
        if {one.label for one in self.candidates if one.fit} <= set(self.measured.get('backbones', {})):
            return
        size, known = train_size(self.protocol, self.cfg), self._iterations_in_minutes()
        self.measured = measure_candidates(self.candidates, self.cfg.default_scope, size, self.protocol.batch_size,
                                           self.args.rounds, show_progress)
        show_progress('')
        if self.protocol.minutes:  # those of a backbone stay when another is added, and all are timed again
            self.measured['iterations'] = known
        write_json(self.out / 'measured.json', self.measured)

    @property
    def running(self) -> list[Candidate]:
        """The backbones that can run, as far as is known."""
        costs = self.measured.get('backbones', {})
        return [one for one in self.candidates if one.fit and not costs.get(one.label, {}).get('failed')
                and (self.protocol.iterations or one.label in costs)]

    def iterations(self) -> dict[str, int]:
        """Of each training, by the backbone's label."""
        if self.protocol.iterations:
            return {one.label: self.protocol.iterations for one in self.running}
        return self._iterations_in_minutes()

    def _iterations_in_minutes(self) -> dict[str, int]:
        found = {label: max(1, round(60 * (self.protocol.minutes or 0) / quartiles(costs[TRAINING])[1]))
                 for label, costs in self.measured.get('backbones', {}).items() if TRAINING in costs}
        return {**found, **self.measured.get('iterations', {})}

    def seconds(self) -> dict[str, float]:
        """Of an iteration, by the backbone's label."""
        return {one.label: quartiles(self.measured['backbones'][one.label][TRAINING])[1] for one in self.running
                if one.label in self.measured.get('backbones', {})}

    def searches(self) -> list[Job]:
        """The trainings that find learning rates."""
        return list(search_jobs(self.out, self.running, self.protocol, self.iterations()))

    def trainings(self) -> list[Job]:
        """Those that are compared, of backbones whose rate is known."""
        rates = best_rates(self.searches(), self.protocol, self.running)
        return list(seed_jobs(self.out, self.running, rates, self.args.seeds, self.iterations()))

    def write(self, job: Job) -> Path:
        """Write the config of a training."""
        return write_training(job, self.cfg, self.protocol)

    def run_stage(self, stage: str, number: int, options: list[str]) -> None:
        """Run one part alone.

        Args:
            stage: of ``STAGES``.
            number: of a training among all of the stage, those of backbones that failed since counted.
            options: of ``mmsimvit train``.
        """
        if stage == 'measure':
            self.measure()
        elif stage != 'report':
            fit = [one for one in self.candidates if one.fit]
            names = [(one.label, rate) for one in fit for rate in self.protocol.rates] if stage == 'search' else [
                (one.label, seed) for seed in self.args.seeds for one in fit]
            label, value = names[number]
            for job in self.searches() if stage == 'search' else self.trainings():
                if job.candidate.label == label and value == (job.rate if stage == 'search' else job.seed):
                    run_jobs([job], self.write, options=options, seconds=self.seconds())
                    if stage == 'train':
                        run_stress([job], self.args.sizes, self.args.severities)

    def submit(self) -> list[str]:
        """Write and submit Slurm's scripts."""
        place = self.args.words.index(next(word for word in self.args.words if word.split('=')[0] == '--slurm'))
        length = 1 if '=' in self.args.words[place] else 2
        words = self.args.words[:place] + self.args.words[place + length:]
        fit = sum(bool(one.fit) for one in self.candidates)
        rates = len(self.protocol.rates)
        counts = dict(search=fit * rates if rates > 1 else 0, train=fit * len(self.args.seeds))
        return submit(write_scripts(self.out, words, self.args.slurm, counts, self.args.jobs))

    def report(self) -> dict[str, Any]:
        """Write what is done."""
        results = collect(self.protocol, self.candidates, self.searches(), self.trainings(), self.measured, self.info,
                          command(self.args.words), self.args.goal)
        write_results(results, self.out)
        write_report(results, self.out)
        return results


def command(words: list[str]) -> str:
    """The command line, to be repeated."""
    given = [word for word in words if word not in ('--report', '--plan')]
    if '--stage' in given:  # which batch jobs add at the end
        given = given[:given.index('--stage')]
    return shlex.join(['python', '-m', 'mmsimvit', 'compare', *given])


def show_progress(line: str) -> None:
    """On one line of a terminal; in a log, nothing."""
    if sys.stderr.isatty():
        print(f'\r\033[K{line}', end='', file=sys.stderr, flush=True)


def print_summary(results: dict[str, Any]) -> None:
    """A line for each backbone."""
    score, width = results['score'], max(len(one['label']) for one in results['backbones'])
    for row in flat_rows(results):
        told = (f'{score} {row[score]:.2f} ({row[f"{score} low"]:.2f} to {row[f"{score} high"]:.2f}), {row["seeds"]} seeds, '
                f'rate {row["learning_rate"]:g}' if score in row else 'nothing is done')
        if 'training_ms' in row:
            told += f', {row["model_ms"]:.1f} ms for an image, {row["training_ms"]:.0f} ms for a step'
        print(f'{row["backbone"]:{width}}  {told}' + (f'; FAILED: {row["failed"]}' if row['failed'] else ''))


@one_line_errors()
def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Run what is left, and report; give what results.json has, or None where others run and report."""
    args = parse_args(argv)
    warnings.filterwarnings('ignore', module='mm(cv|engine|det|seg|pretrain)')  # of what is deprecated in them, and the like
    options = ['--amp'] if args.amp else []
    if args.slurm is not None or (args.stage and args.stage != 'report'):
        comparison = Comparison(args)
        if args.slurm is not None:
            print(f'submitted {", ".join(comparison.submit())}')
        else:
            comparison.run_stage(args.stage, args.number, options)
        return None
    with nullcontext() if args.report else alone_in(args.out_dir):  # a report may be made while others train
        comparison = Comparison(args)
        if args.plan:
            if not comparison.protocol.iterations:
                comparison.measure()
            for job in (*comparison.searches(), *comparison.trainings()):
                print(comparison.write(job))
        elif not args.report and not args.stage:
            comparison.measure()
            run = partial(run_jobs, write=comparison.write, at_once=args.jobs, options=options, seconds=comparison.seconds())
            run(comparison.searches())
            run(comparison.trainings())
            run_stress(comparison.trainings(), args.sizes, args.severities)
        results = comparison.report()
    print_summary(results)
    print(f'wrote {args.out_dir}/report.html, results.json and results.csv')
    return results
