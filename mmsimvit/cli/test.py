"""Evaluate a checkpoint of a detector, segmentor or classifier with its config."""
import argparse
import json
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.registry import METRICS

from ..analysis.pictures import draw_sizes
from ..datasets import check_data
from ..datasets.unwrap import unwrap_dataset
from ..engine.runner import build_runner
from ..engine.work_dir import check_work_dir
from ..files import atomic_write
from ..weights import load_file
from .config import add_common_arguments, load_config
from .errors import one_line_errors
from .launch import cleanup_dist, init_dist


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='PKL', help='write the predictions to this pickle file')
    parser.add_argument('--show-dir', metavar='DIR', help='draw the predictions into this folder; MMPreTrain names a '
                        'picture by its file alone, so use infer where folders of classes have files of the same names')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation, where the library has it')
    parser.add_argument('--sizes', type=int, nargs='+', metavar='PIXELS', help='evaluate at each of these sizes: the crop of a '
                        "classifier's images, the short side of a segmentor's; the table and its picture are in the work dir")
    parser.add_argument('--allow-partial', action='store_true',
                        help='test a checkpoint that lacks parameters of the model, too, or has some of another shape')
    add_common_arguments(parser)
    return parser.parse_args(argv)


def configure(args: argparse.Namespace) -> Config:
    """The config to test.

    Raises:
        CheckpointError: if the checkpoint is missing, cut short or no checkpoint.
        SystemExit: for an option that the config does not support.
    """
    cfg = load_config(args, whole=not args.allow_partial)
    cfg.load_from = args.checkpoint
    load_file(args.checkpoint)  # for its errors, which name the file
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        raise SystemExit(f'error: --out writes a pickle file, so its name must end in .pkl or .pickle, got {args.out}')
    if args.show_dir is not None:
        _draw(cfg, args)
    if args.tta:
        _augment(cfg, args)
    if args.sizes and (args.out is not None or args.show_dir is not None):
        raise SystemExit('error: --sizes writes scores, so leave out --out and --show-dir, or test one size')
    return cfg


def _draw(cfg: Config, args: argparse.Namespace) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise SystemExit(f'error: --show-dir needs a visualization hook, and {args.config} has none among default_hooks')
    if cfg.default_scope == 'mmpretrain':
        if args.tta:
            raise SystemExit('error: MMPreTrain cannot draw augmented images; leave out --show-dir or --tta')
        hook.update(enable=True, interval=1, out_dir=args.show_dir)
    elif cfg.default_scope == 'mmdet':
        # Which MMDetection would look for below the work dir and its time stamp.
        hook.update(draw=True, test_out_dir=str(Path(args.show_dir).absolute()))
    else:
        hook.update(draw=True, interval=1)
        cfg.visualizer.save_dir = args.show_dir


def _augment(cfg: Config, args: argparse.Namespace) -> None:
    """Wrap model and pipeline for test-time augmentation; flipping where the config does not say."""
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    if cfg.default_scope == 'mmdet' and any('segm' in evaluator.get('metric', '') for evaluator in evaluators):
        raise SystemExit('error: MMDetection merges augmented boxes but not masks; --tta is for detectors without masks')
    if cfg.default_scope == 'mmdet':
        cfg.setdefault('tta_model', ConfigDict(
            type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)))
    elif cfg.default_scope == 'mmpretrain':
        cfg.setdefault('tta_model', ConfigDict(type='AverageClsScoreTTA'))
    else:
        cfg.setdefault('tta_model', ConfigDict(type='SegTTAModel'))
    datasets = unwrap_dataset(cfg.test_dataloader.dataset)
    if 'tta_pipeline' not in cfg:
        load = [step for step in datasets[0].pipeline if step.type == 'LoadImageFromFile']
        rest = [step for step in datasets[0].pipeline[:-1] if step.type != 'LoadImageFromFile']
        pack = deepcopy(datasets[0].pipeline[-1])
        if cfg.default_scope == 'mmdet':
            pack.meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)]
        cfg.tta_pipeline = [*load, dict(type='TestTimeAug', transforms=[*([step] for step in rest), flips, [pack]])]
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def at_size(cfg: Config, size: int) -> Config:
    """A copy of a config whose test images have another size, by what resizes and crops them in the pipeline.

    Raises:
        SystemExit: for a detector, for a size below 1, and where nothing resizes.
    """
    if cfg.default_scope not in ('mmpretrain', 'mmseg'):
        raise SystemExit(f'error: --sizes is for classifiers and segmentors, and this config is of {cfg.default_scope}')
    if size < 1:
        raise SystemExit(f'error: --sizes must be positive, got {size}')
    cfg = deepcopy(cfg)
    for dataset in unwrap_dataset(cfg.test_dataloader.dataset):
        steps = [step for step in dataset.pipeline if step.type in ('Resize', 'ResizeEdge', 'CenterCrop')]
        if not any('Resize' in step.type for step in steps):
            raise SystemExit('error: --sizes needs Resize or ResizeEdge in the test pipeline, which has '
                             f'{", ".join(step.type for step in dataset.pipeline)}')
        # The crop is what the model sees; what comes before it keeps its ratio to that.
        seen = steps[-1].crop_size if steps[-1].type == 'CenterCrop' else steps[-1].scale
        factor = size / (seen if isinstance(seen, int) else min(seen))
        for step in steps:
            key = 'crop_size' if step.type == 'CenterCrop' else 'scale'
            step[key] = round(step[key] * factor) if isinstance(step[key], int) else tuple(round(x * factor) for x in step[key])
    return cfg


def evaluate_sizes(cfg: Config, sizes: list[int]) -> dict[str, float]:
    """Evaluate at each size; print the table, and write it and its picture into the work dir.

    Returns:
        The metrics, named ``size/metric``.
    """
    found = {}
    for size in sorted(set(sizes)):
        sized = at_size(cfg, size)
        # mmengine tells runs of one second apart by these alone.
        sized.update(work_dir=str(Path(cfg.work_dir) / str(size)), experiment_name=f'{Path(cfg.filename).stem}_{size}')
        found[size] = build_runner(sized).test()
    if is_main_process():
        metrics = list(next(iter(found.values())))
        table = [['size', *metrics]]
        table += [[str(size), *(f'{scores[name]:.2f}' for name in metrics)] for size, scores in found.items()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        print('\n'.join('  '.join(map(str.rjust, row, widths)) for row in table))
        folder, metric = Path(cfg.work_dir), metrics[0]
        atomic_write(folder / 'sizes.json', lambda path: path.write_text(json.dumps(found, indent=2) + '\n'))
        scores = {size: [values[metric]] for size, values in found.items()}
        atomic_write(folder / 'sizes.png', lambda path: draw_sizes({Path(cfg.filename).stem: scores}, metric, path))
    return {f'{size}/{name}': value for size, scores in found.items() for name, value in scores.items()}


@one_line_errors()
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Evaluate, and give the metrics."""
    args = parse_args(argv)
    cfg = configure(args)
    cfg.pop('strategy', None)  # which is for training
    init_dist(cfg)
    check_work_dir(cfg.work_dir)
    if args.out is not None:
        check_work_dir(Path(args.out).parent)
    check_data(cfg, ('test', ))
    if args.sizes:
        scores = evaluate_sizes(cfg, args.sizes)
        cleanup_dist()
        return scores
    runner = build_runner(cfg)
    if args.out is not None:
        kind = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        runner.test_evaluator.metrics.append(METRICS.build(dict(type=kind, out_file_path=args.out)))
    metrics = runner.test()
    cleanup_dist()
    return metrics
