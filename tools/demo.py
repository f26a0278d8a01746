"""Train Mask R-CNN on SimViT-micro from random weights on generated images, evaluate it, and draw what it learnt.

Interrupted, it goes on from its last checkpoint when started again.
"""
import argparse
import subprocess
import sys
from pathlib import Path

from mmsimvit.engine.errors import one_line_errors
from mmsimvit.engine.pictures import draw_curves, draw_detections
from mmsimvit.engine.resume import find_whole_checkpoint
from mmsimvit.test import main as test

ROOT = Path(__file__).resolve().parent.parent
CONFIG = 'configs/maskrcnn_simvit_micro_shapes.py'
LEAST_AP = 0.30  # of boxes and of masks: a run below has not learnt what it should


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/demo', help='where logs, checkpoints and pictures go')
    work_dir = Path(parser.parse_args(argv).work_dir)
    config = ROOT / CONFIG
    train = subprocess.run([sys.executable, ROOT / 'tools/train.py', config, '--resume', '--work-dir', work_dir])
    if train.returncode:
        sys.exit('error: training ended early, see above; the same command goes on from the last checkpoint')
    with one_line_errors():
        checkpoint = find_whole_checkpoint(work_dir)
        metrics = test([str(config), checkpoint, '--work-dir', str(work_dir / 'test')])
        draw_curves(work_dir, work_dir / 'curves.png')
        draw_detections(config, checkpoint, work_dir / 'predictions.png')
    box, mask = (metrics.get(f'coco/{kind}_mAP', 0.) for kind in ('bbox', 'segm'))  # absent if nothing was found
    print(f'\nbox AP {box:.3f}, mask AP {mask:.3f} (0.50:0.95) on images it was not trained on\n'
          f'ground truth and predictions: {work_dir}/predictions.png\nloss and AP: {work_dir}/curves.png')
    if not min(box, mask) >= LEAST_AP:
        sys.exit(f'error: an AP below {LEAST_AP} means that it did not learn; look at {work_dir}/curves.png')


if __name__ == '__main__':
    main()
