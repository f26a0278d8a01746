"""Train SimViT-micro from random weights on generated images, evaluate it, and draw what it learnt.

Interrupted, it goes on from the last whole epoch when started again.
"""
import argparse
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..analysis.pictures import draw_classifications, draw_curves, draw_detections, draw_segmentations
from ..config_files import find_config
from ..engine import find_whole_checkpoint
from .errors import one_line_errors
from .test import main as test


class Task(NamedTuple):
    """What is trained, and what it must reach: a score below has not learnt what it should."""
    config: str
    draw: Callable
    drawn: str
    scores: dict[str, tuple[str, float, float | str, float]]  # of the evaluator -> name, its full scale, usual and least value


PAIRS = 'in each pair what is there on the left, what it found on the right'
TASKS = dict(
    detection=Task('maskrcnn_simvit_micro_shapes.py', draw_detections, PAIRS,
                   {'coco/bbox_mAP': ('box AP', 1, 0.6, 0.3), 'coco/segm_mAP': ('mask AP', 1, 0.5, 0.3)}),
    segmentation=Task('semfpn_simvit_micro_shapes.py', draw_segmentations, PAIRS,
                      {'mIoU': ('mean IoU', 100, '0.5 to 0.6', 0.3)}),
    classification=Task('simvit_micro_shapes.py', draw_classifications, 'what it takes each image for; mistakes in red',
                        {'accuracy/top1': ('accuracy', 100, 0.95, 0.6)}),
)


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Train, evaluate and draw; end with an error if too little was learnt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--task', choices=list(TASKS), default='detection', help='Mask R-CNN, Semantic FPN or a classifier')
    parser.add_argument('--work-dir', metavar='DIR', help='where logs, checkpoints and pictures go; work_dirs/demo_<task> by '
                        'default')
    args = parser.parse_args(argv)
    task = TASKS[args.task]
    work_dir = Path(args.work_dir or f'work_dirs/demo_{args.task}')
    config = find_config(task.config)
    train = subprocess.Popen([sys.executable, '-m', 'mmsimvit.train', config, '--resume', '--work-dir', work_dir])
    signal.signal(signal.SIGTERM, lambda *_: train.terminate())
    try:
        train.wait()
    except KeyboardInterrupt:  # which the training got as well, and must end its workers; not killed after a moment
        train.wait()
        sys.exit('interrupted; the same command goes on from the last whole epoch')
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if train.returncode:
        sys.exit('error: training ended early, see above; the same command goes on from the last whole epoch')
    checkpoint = find_whole_checkpoint(work_dir)
    if checkpoint is None:
        sys.exit(f'error: training left no checkpoint in {work_dir}')
    metrics = test([config, checkpoint, '--work-dir', str(work_dir / 'test')])
    draw_curves(work_dir, work_dir / 'curves.png')
    task.draw(config, checkpoint, work_dir / 'predictions.png')
    # A detector's scores are absent if it found nothing.
    scores = {name: (metrics.get(key, 0.) / scale, usual, least) for key, (name, scale, usual, least) in task.scores.items()}
    print('\n' + ', '.join(f'{name} {score:.3f} (usually {usual})' for name, (score, usual, _) in scores.items())
          + ' on images it was not trained on\n'
          f'predictions: {work_dir}/predictions.png, {task.drawn}\nloss and scores: {work_dir}/curves.png\n'
          f'on other images: {sys.executable} -m mmsimvit.infer FOLDER {config} {checkpoint}\n'
          'It knows nothing but the generated shapes; how to train on yours says docs/your_data.md.')
    for name, (score, _, least) in scores.items():
        if not score >= least:
            sys.exit(f'error: {name} {score:.3f} is below {least}, so it did not learn; look at {work_dir}/curves.png')
