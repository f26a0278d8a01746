"""Trainings one after another, or several at a time: each is a process of its own, and none is run twice."""
import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..engine import find_whole_checkpoint
from ..errors import ConfigError
from ..files import atomic_write
from .plan import Job
from .record import DONE, PARENT, PROGRESS
from .stress import conditions

FAILED, LOG = 'failed.txt', 'train.log'


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder; the system lets go of it when this process ends, however it does.

    Raises:
        ConfigError: if another comparison runs in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f'another comparison runs in {folder}; wait for it, or name another folder with '
                              '--out-dir') from None
        yield


def is_done(job: Job) -> bool:
    """Whether a training is over."""
    return (job.folder / DONE).is_file()


def result_of(job: Job) -> dict:
    """What ``RecordHook`` wrote."""
    return json.loads((job.folder / DONE).read_text())


def failure_of(job: Job) -> str | None:
    """The last line of a training that failed; None if it did not."""
    path = job.folder / FAILED
    return path.read_text().strip() if path.is_file() else None


def run_jobs(jobs: Sequence[Job], write: Callable[[Job], Path], at_once: int = 1, options: Sequence[str] = (),
             seconds: dict[str, float] | None = None) -> None:
    """Run what is not done; go on with what was begun. What failed is written down, and the others go on.

    Args:
        jobs: the trainings.
        write: writes the config of one, and gives its path.
        at_once: how many run at a time; with GPUs, each has one of its own.
        options: more words of ``mmsimvit train``.
        seconds: of an iteration, by the backbone's label, for the time that is left.
    """
    waiting = [job for job in jobs if not is_done(job)]
    if not waiting:
        return
    cost = {job.folder: job.iterations * (seconds or {}).get(job.candidate.label, 1.) for job in jobs}
    places: Queue[int] = Queue()
    for place in range(at_once):
        places.put(place)
    console = Console(stderr=True)
    columns = TextColumn('{task.description}'), BarColumn(), TextColumn('{task.percentage:>3.0f} %'), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600) as progress, \
            ThreadPoolExecutor(at_once) as pool:
        whole = progress.add_task(f'{len(waiting)} trainings', total=sum(cost[job.folder] for job in waiting))

        def run(job: Job) -> None:
            place, began = places.get(), time.monotonic()
            bar = progress.add_task(job.name, total=job.iterations)
            before = 0

            def tell() -> None:
                nonlocal before
                with contextlib.suppress(FileNotFoundError):
                    now = int((job.folder / PROGRESS).read_text())
                    progress.advance(whole, (now - before) / job.iterations * cost[job.folder])
                    progress.update(bar, completed=now)
                    before = now

            failed = _train(write(job), job.folder, place, options, tell)
            progress.advance(whole, (job.iterations - before) / job.iterations * cost[job.folder])
            progress.remove_task(bar)
            places.put(place)
            left = sum(not is_done(one) and failure_of(one) is None for one in jobs)
            said = f'failed: {failed}' if failed else f'done in {time.monotonic() - began:.0f} s'
            console.print(f'{job.name}: {said}; {left} of {len(jobs)} left', highlight=False, soft_wrap=True)

        for job in waiting:
            (job.folder / FAILED).unlink(missing_ok=True)  # it is tried again
        list(pool.map(run, waiting))


def run_stress(jobs: Sequence[Job], factors: Sequence[float], severities: Sequence[int]) -> None:
    """Evaluate trainings that are done at other sizes and on corrupted images, each in a process of its own.

    What fails is told, and the others go on.

    Args:
        jobs: the trainings.
        factors: of the images' size.
        severities: of the corruptions.
    """
    names = conditions(list(factors), list(severities))
    for job in jobs:
        path = job.folder / 'stress.json'
        known = json.loads(path.read_text()) if path.is_file() else {}
        checkpoint = find_whole_checkpoint(job.folder)
        if not is_done(job) or checkpoint is None or names.keys() <= known.keys():
            continue
        words = ['--factors', *map(str, factors), '--severities', *map(str, severities)]
        with open(job.folder / 'stress.log', 'w') as log:
            code = subprocess.run([sys.executable, '-m', 'mmsimvit.compare.stress', str(job.folder), checkpoint, *words],
                                  stdout=log, stderr=subprocess.STDOUT).returncode
        said = f'failed: {_reason(job.folder / "stress.log")}' if code else 'done'
        print(f'{job.name}, {len(names)} other conditions: {said}', file=sys.stderr)


def _train(config: Path, folder: Path, place: int, options: Sequence[str], tell: Callable[[], None]) -> str | None:
    env = {**os.environ, PARENT: str(os.getpid())}
    if torch.cuda.device_count() > 1:
        shown = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
        devices = shown if len(shown) > 1 else [str(number) for number in range(torch.cuda.device_count())]
        env['CUDA_VISIBLE_DEVICES'] = devices[place % len(devices)]
    command = [sys.executable, '-m', 'mmsimvit', 'train', str(config), '--resume', *options]
    with open(folder / LOG, 'a') as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
        try:
            while True:
                try:
                    code = process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    tell()
        finally:
            if process.poll() is None:  # this process was told to end
                process.terminate()
                process.wait()
    if code == 0 and (folder / DONE).is_file():
        return None
    reason = _reason(folder / LOG) or f'it ended with status {code}'
    if code < 0:
        reason = f'it was killed by signal {-code}'
    atomic_write(folder / FAILED, lambda path: path.write_text(reason + '\n'))
    return reason


def _reason(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    told = [line for line in lines if re.match(r'error: |[\w.]*(Error|Exception)\b', line)]
    return (told or lines or [''])[-1].removeprefix('error: ')[:500]
