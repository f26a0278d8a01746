"""Whole trainings on a GPU, by the commands that users call."""
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...config_files import find_config
from . import Settings, stop

STEPS = ('demo', 'real_images', 'processes')
TINY = [f'{split}_dataloader.dataset.{key}={value}' for split in ('train', 'val', 'test')
        for key, value in dict(num_training=8, num_validation=3, image_size=64).items()]


def demo(settings: Settings) -> Iterator[dict[str, Any]]:
    """Mask R-CNN with SimViT-micro on the generated shapes, to the AP that the demo has to reach."""
    for dtype in ('bfloat16', 'float16'):
        options = [*TINY, 'train_cfg.max_epochs=1'] if settings.rehearse else []
        yield train(f'Mask R-CNN, SimViT-micro, {dtype}', 'maskrcnn_simvit_micro_shapes.py', settings, options, dtype,
                    None if settings.rehearse else 0.3)


def real_images(settings: Settings) -> Iterator[dict[str, Any]]:
    """A few hundred iterations of Mask R-CNN with SimViT-micro on the images of ``--data``."""
    if settings.data is None:
        yield dict(case='real images', note='--data names none')
        return
    annotations = settings.data / 'annotations'
    with (annotations / 'instances_train.json').open() as file:
        classes = [category['name'] for category in json.load(file)['categories']]
    config = Path(settings.folder) / 'real_images.py'
    base = str(Path(find_config('maskrcnn_simvit_micro_custom.py')).absolute())
    config.write_text(f"""_base_ = {base!r}
model = dict(roi_head=dict(bbox_head=dict(num_classes={len(classes)}), mask_head=dict(num_classes={len(classes)})))
train_dataloader = dict(dataset=dict(data_root={str(settings.data)!r}, metainfo=dict(classes={tuple(classes)})))
val_dataloader = dict(dataset=dict(data_root={str(settings.data)!r}, metainfo=dict(classes={tuple(classes)})))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={str(annotations / 'instances_val.json')!r})
test_evaluator = val_evaluator
train_cfg = dict(max_epochs={1 if settings.rehearse else 4})
""")
    yield train('real images, bfloat16', str(config), settings, [], 'bfloat16')


def processes(settings: Settings) -> Iterator[dict[str, Any]]:
    """Two processes on one card through gloo, fully sharded data parallel, and a model compiled by its config."""
    short = [*TINY, 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']
    config = 'simvit_micro_shapes.py'
    yield train('two processes, gloo', config, settings, [*short, 'env_cfg.dist_cfg.backend=gloo'], processes=2)
    sharded = Path(settings.folder) / 'fsdp.py'
    bases = [find_config(config), find_config('_base_/fsdp.py')]
    sharded.write_text(f'_base_ = {[str(Path(base).absolute()) for base in bases]}\n')
    yield train('fully sharded data parallel, one process', str(sharded), settings, short, processes=1)
    yield train('compile=True in the config', config, settings, [*short, 'compile=True'])


def train(case: str, config: str, settings: Settings, options: list[str], dtype: str | None = None, least: float | None = None,
          processes: int = 0) -> dict[str, Any]:
    """Train as ``tools/train.py`` does, in a process of its own; give scores, speed and memory out of its log."""
    work_dir = Path(settings.folder) / ''.join(letter if letter.isalnum() else '_' for letter in case)
    shutil.rmtree(work_dir, ignore_errors=True)  # an earlier run's scores are not this one's
    command = [sys.executable, '-m', 'mmsimvit', 'train', find_config(config), '--work-dir', str(work_dir)]
    command += ['--launcher', 'pytorch'] * bool(processes)
    if dtype and settings.device != 'cpu':
        command += ['--amp', '--amp-dtype', dtype]
    command += ['--cfg-options', *options] if options else []
    began = time.monotonic()
    log = work_dir.with_suffix('.log')
    started: list[subprocess.Popen] = []
    codes: list[int] | None = []
    try:
        with log.open('w') as file:
            for rank in range(max(processes, 1)):
                # As a launcher would, but all on the first card.
                place = dict(RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_RANK='0', MASTER_ADDR='127.0.0.1',
                             MASTER_PORT='29517') if processes else {}
                started.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                                                env={**os.environ, 'OMP_NUM_THREADS': '1', **place}))
        codes = [process.wait(max(settings.ends - time.monotonic(), 1)) for process in started]
    except subprocess.TimeoutExpired:
        codes = [code for process in started if (code := process.poll())] or None  # the others may wait for one that failed
    finally:
        for process in started:
            stop(process)
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for path in logs for line in path.read_text().splitlines()]
    steps = [line for line in lines if 'loss' in line]
    row: dict[str, Any] = dict(case=case, seconds=time.monotonic() - began)
    if steps:
        last = steps[len(steps) // 2:]
        row['s an iteration'] = sum(line['time'] for line in last) / len(last)
        row['share of data loading'] = sum(line['data_time'] for line in last) / sum(line['time'] for line in last)
        row['memory MiB'] = max(line.get('memory', 0) for line in steps)
        row['last loss'] = steps[-1]['loss']
    scores = {key.rpartition('/')[2]: value for line in lines for key, value in line.items()
              if key.endswith(('bbox_mAP', 'segm_mAP', 'top1'))}
    row.update(scores)
    if codes is None:
        row.update(ok=None, note='no time was left')
    elif any(codes):
        written = [line for line in log.read_text().splitlines() if line.strip()]
        errors = [line for line in written if 'error' in line.lower()]
        row.update(ok=False, note=(errors or written or [f'ended with status {codes}'])[-1][:200])
    else:
        finite = all(line['loss'] == line['loss'] for line in steps)
        row['ok'] = finite and (least is None or min(scores.values(), default=0.) >= least)
    return row
