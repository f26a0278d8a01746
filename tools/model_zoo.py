"""Write docs/model_zoo.md from the configs and model-index.yml, after counting each config's model.

The counts go into docs/model_zoo.json and, for mim, into model-index.yml, whose other entries are written by hand: published
results under Results, our own under Metadata: Reproduced, of the same form as Metrics. Run it after adding a config.
"""
import argparse
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmsimvit import generate_shapes
from mmsimvit.engine.complexity import count_complexity
from mmsimvit.weights import find_systems

ROOT = Path(__file__).resolve().parent.parent
COUNTS, INDEX, PAGE = ROOT / 'docs/model_zoo.json', ROOT / 'model-index.yml', ROOT / 'docs/model_zoo.md'
SHAPES = dict(mmdet=(800, 1280), mmseg=(512, 512), mmpretrain=(224, 224))  # at which counts are usually given
COLUMNS = ('config', 'backbone', 'parameters', 'GMACs', 'schedule', 'published', 'reproduced here')
HEAD = """# Model zoo
*Written by `tools/model_zoo.py`; change the configs or `model-index.yml`, not this page.*

Each config is found by its name wherever mmsimvit is installed: `python -m mmsimvit.train NAME`. Parameters are those of the
whole model. GMACs, which papers call FLOPs, are of the whole model and one image: 800 x 1280 pixels for detectors, 512 x 512
for segmentors, 224 x 224 for classifiers, and the size of their images for the generated ones; `tools/get_flops.py` says what
is counted. A backbone that is "changed" has the windows or the tables of biases that were published for this task, others than
the arch of that name. Published scores are those of the papers' authors, with their code, from the source named above each
table, which has the weights as well, to be [converted](existing_config.md#weights-to-start-from) once. Images a step are those
of all GPUs together. A score in the last
column is one that a training with this project gave; **{reproduced}**.
"""


def config_files() -> list[Path]:
    return sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


def build(config: Path) -> tuple[Config, nn.Module]:
    """A config and its model, of whose size nothing is allocated where that can be helped."""
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    # PVT v2 asks its drop path rates for their values.
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('cpu' if 'pvtv2' in config.name else 'meta'):
        return cfg, MODELS.build(cfg.model)


def count(config: Path) -> dict[str, Any]:
    """Parameters and multiply-accumulates of a config's model.

    Returns:
        ``parameters``, ``macs`` of one image, and ``shape``, the height and width of that image in pixels.
    """
    cfg, model = build(config)
    shape = image_shape(cfg)
    total = count_complexity(model, shape).total
    return dict(parameters=total.parameters, macs=total.macs, shape=list(shape))


def image_shape(cfg: Config) -> tuple[int, int]:
    """Height and width of the images that a config is counted for."""
    dataset = cfg.test_dataloader.dataset
    if dataset.type == 'Shapes':
        size = dataset.get('image_size', inspect.signature(generate_shapes).parameters['image_size'].default)
        return (size // 2, ) * 2 if cfg.default_scope == 'mmpretrain' else (size, ) * 2
    return SHAPES[cfg.default_scope]


def render(counts: dict[str, Any], index: dict[str, Any]) -> str:
    """The page."""
    entries = {entry['Config'].removeprefix('configs/'): entry for entry in index['Models']}
    number = sum('Reproduced' in entry['Metadata'] for entry in entries.values())
    lines = [HEAD.format(reproduced=f'there are {number}' if number else 'there is none yet')]
    for collection in index['Collections']:
        name, paper, source = collection['Name'], collection['Paper'], collection['Code']['URL']
        released = find_systems()[name.replace(' ', '').lower()].published.released
        lines += [f'## {name}', f'[{paper["Title"]}]({paper["URL"]}). Published scores and weights ({", ".join(released)}): '
                  f'[{source.removeprefix("https://github.com/")}]({source}). Licence there: {collection["License"]}.', '']
        rows = [path for path in counts if path in entries and entries[path]['In Collection'] == name]
        lines += table(rows, counts, entries)
    lines += ['## Generated images, your own data, comparison',
              'Small heads and short schedules; nothing was published for them.', '']
    lines += table([path for path in counts if path not in entries], counts, entries)
    return '\n'.join(lines)


def table(paths: list[str], counts: dict[str, Any], entries: dict[str, Any]) -> list[str]:
    lines = [f'| {" | ".join(COLUMNS)} |', f'|{"---|" * len(COLUMNS)}']
    for path in paths:
        cfg = Config.fromfile(ROOT / 'configs' / path)
        entry = entries.get(path, {})
        published = ', '.join(filter(None, (scores(result['Metrics']) for result in entry.get('Results', []))))
        reproduced = scores(entry.get('Metadata', {}).get('Reproduced', {}))
        lines.append('| ' + ' | '.join([
            f'`{Path(path).stem}`', backbone(cfg), f'{counts[path]["parameters"]:,}', gigas(counts[path]['macs']),
            schedule(cfg), published, reproduced]) + ' |')
    return [*lines, '']


def gigas(number: float) -> str:
    """Such as ``247.2`` and ``0.65``."""
    return f'{number / 1e9:.{1 if number >= 1e9 else 2}f}'


def scores(metrics: dict[str, float]) -> str:
    return ', '.join(f'{name} {value}' for name, value in metrics.items())


def backbone(cfg: Config) -> str:
    """Such as ``SimViT tiny``, ``ResNet 18``, or ``LIT s (changed)`` for other windows or the like in an arch of that size."""
    settings = cfg.model.backbone
    arch = settings.get('arch', settings.get('depth', ''))
    if isinstance(arch, dict):
        names = [name for name, known in MODELS.get(settings.type).arch_zoo.items()
                 if all(list(known[key]) == list(arch[key]) for key in ('embed_dims', 'depths'))]
        arch = f'{names[0]} (changed)' if names else '(smaller)'
    return f'{settings.type.split(".")[-1]} {arch}'.strip()


def schedule(cfg: Config) -> str:
    """Such as ``12 epochs, 16 images a step``."""
    loop = cfg.train_cfg
    length = f'{loop.max_iters // 1000}k iterations' if loop.get('max_iters', 0) >= 1000 else (
        f'{loop.max_iters} iterations' if 'max_iters' in loop else f'{loop.max_epochs} epochs')
    return f'{length}, {cfg.auto_scale_lr.base_batch_size} images a step'


def index_with(counts: dict[str, Any], text: str) -> str:
    """The text of model-index.yml with these counts."""
    def replace(match: re.Match[str]) -> str:
        found = counts[match['config']]
        return (f'{match["before"]}      Parameters: {found["parameters"]}\n'
                f'      FLOPs: {found["macs"]}  # multiply-accumulates, {found["shape"][0]} x {found["shape"][1]} pixels\n')

    before = r'(?P<before>    Config: configs/(?P<config>\S+)\n    Metadata:\n)'
    return re.sub(before + r'(?:      Parameters: .*\n)?(?:      FLOPs: .*\n)?', replace, text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--new', action='store_true', help='count only configs that docs/model_zoo.json does not have')
    args = parser.parse_args(argv)
    MMLogger.get_instance('model_zoo').setLevel('WARNING')
    counts = json.loads(COUNTS.read_text()) if args.new else {}
    files = config_files()
    counts = {name: found for name, found in counts.items() if (ROOT / 'configs' / name).is_file()}
    for number, path in enumerate(files, 1):
        name = path.relative_to(ROOT / 'configs').as_posix()
        if name not in counts:
            print(f'{number} of {len(files)}: {name}', file=sys.stderr, flush=True)
            counts[name] = count(path)
    rows = (f' {json.dumps(name)}: {json.dumps(found)}' for name, found in sorted(counts.items()))
    COUNTS.write_text('{\n' + ',\n'.join(rows) + '\n}\n')
    INDEX.write_text(index_with(counts, INDEX.read_text()))
    PAGE.write_text(render(counts, yaml.safe_load(INDEX.read_text())))


if __name__ == '__main__':
    main()
