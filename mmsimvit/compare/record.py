"""What a training notes for a comparison while it runs."""
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..files import atomic_write

PARENT = 'MMSIMVIT_COMPARE'  # the process that waits for this one
DONE, CURVE, PROGRESS = 'done.json', 'curve.json', 'progress.json'


@HOOKS.register_module()
class RecordHook(Hook):
    """Note the validation scores beside the seconds of training so far, and at the end write ``done.json`` into the work dir.

    The seconds are those of iterations, with what waits for data, and without validation. They are in the checkpoints, so that
    those of a resumed training go on. One that was cut between a checkpoint and its validation begins with that validation. A
    training whose queue was killed ends at the next iteration, for the next queue will resume it.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.mark: float | None = None
        self.told = 0.

    @staticmethod
    def _clock(runner: Runner) -> dict[str, float]:
        if 'compare' not in runner.message_hub.runtime_info:
            runner.message_hub.update_info('compare', dict(seconds=0., iterations=0))
        return runner.message_hub.get_info('compare')

    @staticmethod
    def _end_without_queue() -> None:
        waiting = os.environ.get(PARENT)
        if waiting and os.getppid() != int(waiting):
            sys.exit('error: the comparison that started this training has ended')

    def before_train(self, runner: Runner) -> None:
        """Evaluate a resumed model, if that was cut."""
        if runner.iter and not any(point['iteration'] == runner.iter for point in read_curve(runner.work_dir)):
            runner.val_loop.run()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Start the clock, if it does not run."""
        self.mark = self.mark or time.perf_counter()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Add the seconds since the last iteration, and tell how far the training is."""
        self._end_without_queue()
        now, clock = time.perf_counter(), self._clock(runner)
        clock['seconds'] += now - (self.mark or now)
        clock['iterations'] += 1
        self.mark = now
        if now - self.told > 2:
            self.told = now
            write_json(Path(runner.work_dir, PROGRESS), runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look for the queue."""
        self._end_without_queue()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add a point to the curve; the clock waits for the next iteration."""
        self.mark = None
        point = dict(iteration=runner.iter, seconds=self._clock(runner)['seconds'],
                     scores={name: float(value) for name, value in (metrics or {}).items()})
        before = [one for one in read_curve(runner.work_dir) if one['iteration'] < runner.iter]
        write_json(Path(runner.work_dir, CURVE), [*before, point])

    def after_train(self, runner: Runner) -> None:
        """Write what was noted."""
        clock, batch = self._clock(runner), runner.train_dataloader.batch_size
        write_json(Path(runner.work_dir, DONE), dict(
            **clock, images_per_second=batch * clock['iterations'] / max(clock['seconds'], 1e-9),
            peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            curve=read_curve(runner.work_dir)))


def read_curve(work_dir: str | Path) -> list[dict]:
    """The validations of a training: iteration, seconds of training before it, scores."""
    path = Path(work_dir, CURVE)
    return json.loads(path.read_text()) if path.is_file() else []


def write_json(path: Path, content: Any) -> None:
    """Write a file whole."""
    atomic_write(path, lambda unfinished: unfinished.write_text(json.dumps(content, indent=1) + '\n'))
