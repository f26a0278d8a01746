"""Write what the pages say of the systems, from their metafiles, configs and classes, after counting each config's model.

A metafile (``metafile.yml`` beside a system's configs) has its paper, the licence, and by hand the published results, under
Results, and our own, under Metadata: Reproduced, in the same form as Metrics. This tool writes the entries of its configs and
their counts, docs/model_zoo.md, and the marked parts of other pages. The counts of all configs are in docs/model_zoo.json. Run
it after adding a config or changing a metafile or a class.
"""
import argparse
import contextlib
import functools
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.overrides import TorchFunctionMode

from mmsimvit import generate_shapes
from mmsimvit.analysis.flops import count_complexity
from mmsimvit.backbones import Backbone

ROOT = Path(__file__).resolve().parent.parent
COUNTS, INDEX, PAGE = ROOT / 'docs/model_zoo.json', ROOT / 'model-index.yml', ROOT / 'docs/model_zoo.md'
LIBRARIES = ROOT / 'configs/_base_/backbones.py'  # the table of backbones that are the code of the libraries
SHAPES = dict(mmdet=(800, 1280), mmseg=(512, 512), mmpretrain=(224, 224))  # at which counts are usually given
TASKS = dict(coco=('Object Detection', 'COCO'), ade20k=('Semantic Segmentation', 'ADE20K'),  # by a word of a config's name
             imagenet=('Image Classification', 'ImageNet-1k'))
METRICS = {'Top 1 Accuracy': 'top-1', 'box AP': 'box AP', 'mIoU': 'mIoU'}  # a system is introduced by the first that it has
HEAD = """# Model zoo
*Written by `tools/model_zoo.py` from the metafiles beside the configs, the configs and the classes. Do not edit this page.*

`python -m mmsimvit.train NAME` finds a config by its name wherever mmsimvit is installed. [Train, test,
look](training.md#configs) says which data and schedules the names stand for.

The first table of each system has its variants. The channels are those of the returned maps, which are the `in_channels` of
necks and heads. Parameters are those of the backbone for dense prediction. GMACs are those of the variant's ImageNet config.

The second table has the configs. Parameters and GMACs are those of the whole model.

- GMACs (papers call them FLOPs) are counted for one image by `tools/get_flops.py`: 800 x 1280 pixels for detectors, 512 x 512
  for segmentors, 224 x 224 for classifiers, or the square that their names or pipelines say. Configs with generated images are
  counted at the size of these.
- "published" results are those of the papers' authors, with their code. Top-1 accuracy is that of ImageNet-1k.
- "reproduced here" results come from trainings with this project: **{reproduced}**.
- A backbone is "changed" where the model for this task has other windows, tables of biases or norms of maps than the variant.
- Batch sizes count the images of all GPUs together.
- Swin, PVT, PVT v2, Twins, MViTv2 and DeiT are the code of MMDetection and MMPreTrain. Here are configs that these lack.
- An empty cell means that no number was published, or none was reproduced.

[Weights to start from](existing_config.md#weights-to-start-from) says how to load published weights.
"""


def config_files() -> list[Path]:
    return sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


@functools.cache
def load_config(path: Path) -> Config:
    """A config to be read, for the pages."""
    return Config.fromfile(path)


def build(config: Path) -> tuple[Config, nn.Module]:
    """A config and its model, without its numbers where that can be helped."""
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    # Deformable DETR asks its maps for their sizes.
    place = contextlib.nullcontext() if cfg.model.type == 'DeformableDETR' else without_numbers()
    with DefaultScope.overwrite_default_scope(cfg.default_scope), place:
        return cfg, MODELS.build(cfg.model)


class LinspaceOnCPU(TorchFunctionMode):
    """Lets ``torch.linspace`` make numbers that can be read, whichever device is the default."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **(dict(device='cpu') if func is torch.linspace else {})})


@contextlib.contextmanager
def without_numbers() -> Iterator[None]:
    """Models that are built here have no memory for their parameters. The libraries' read their drop path rates."""
    with torch.device('meta'), LinspaceOnCPU():
        yield


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
    for step in dataset.get('pipeline', []):
        if step.type == 'CenterCrop':
            return (step.crop_size, ) * 2
        if step.type == 'Resize' and len(set(step.scale)) == 1:  # into a square
            return tuple(step.scale)
    return SHAPES[cfg.default_scope]


def metafiles() -> list[Path]:
    """Those that model-index.yml imports, in its order."""
    return [path for pattern in yaml.safe_load(INDEX.read_text())['Import'] for path in sorted(ROOT.glob(pattern))]


def load_index(texts: Iterable[str]) -> dict[str, list[dict]]:
    """``Collections`` and ``Models`` of the texts of metafiles, as mim reads them together."""
    loaded = [yaml.safe_load(text) for text in texts]
    return {key: [entry for index in loaded for entry in index.get(key) or []] for key in ('Collections', 'Models')}


def find_task(name: str) -> tuple[str, str] | None:
    """Task and data set of a config, unless it is for generated images or your own data."""
    return next((TASKS[word] for word in Path(name).stem.split('_') if word in TASKS), None)


def fill(path: Path, text: str, counts: dict[str, Any]) -> str:
    """The text of a metafile with entries for all published settings in its folder, and with these counts."""
    def replace(match: re.Match[str]) -> str:
        found = counts[match['config']]
        return (f'{match["before"]}      Parameters: {found["parameters"]}\n'
                f'      FLOPs: {found["macs"]}  # multiply-accumulates, {found["shape"][0]} x {found["shape"][1]} pixels\n')

    index = yaml.safe_load(text)
    known = {entry['Config'] for entry in index.get('Models') or []}
    for config in sorted(path.parent.glob('*.py')):
        name, found = config.relative_to(ROOT).as_posix(), find_task(config.name)
        if found and name not in known:
            collection, (task, dataset) = index['Collections'][0]['Name'], found
            text += (f'  - Name: {config.stem}\n    In Collection: {collection}\n    Config: {name}\n    Metadata:\n'
                     f'    Results:\n      - Task: {task}\n        Dataset: {dataset}\n        Metrics: {{}}\n')
    before = r'(?P<before>    Config: configs/(?P<config>\S+)\n    Metadata:\n)'
    return re.sub(before + r'(?:      Parameters: .*\n)?(?:      FLOPs: .*\n)?', replace, text)


def render_all(counts: dict[str, Any]) -> dict[Path, str]:
    """The text of each file that this tool writes, except for the counts."""
    texts = {path: fill(path, path.read_text(), counts) for path in metafiles()}
    index = load_index(texts.values())
    texts[PAGE] = render_page(counts, index)
    for file, name, lines in (('README.md', 'systems', list_systems(index)),
                              ('docs/existing_config.md', 'channels', list_channels(index)),
                              ('docs/reference.md', 'classes', list_classes(index))):
        texts[ROOT / file] = insert((ROOT / file).read_text(), name, lines)
    return texts


def insert(text: str, name: str, lines: Sequence[str]) -> str:
    """A page with these lines between the marks of that name."""
    begin, end = f'<!-- {name}: written by tools/model_zoo.py -->\n', f'<!-- end of {name} -->'
    head, middle, tail = text.partition(begin)
    if not middle or end not in tail:
        raise ValueError(f'the page lacks the line {begin.strip()}, or {end} after it')
    return '\n'.join([head + begin.strip(), *lines, end]) + tail.partition(end)[2]


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f'| {" | ".join(cells)} |' for cells in (heading, *rows)]
    return [lines[0], f'|{"---|" * len(heading)}', *lines[1:]]


class Variant(NamedTuple):
    """What is said of a backbone for dense prediction."""
    parameters: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]


@functools.cache
def size_variants(system: str) -> dict[str, Variant]:
    """The variants of a system, ours or a library's."""
    rows = load_config(LIBRARIES).backbones.get(system)
    with without_numbers():
        if rows is None:
            kind = MODELS.get(system)
            models = {arch: kind(arch) for arch in kind.arch_zoo}
            return {arch: Variant(count_parameters(model), model.out_channels, model.strides) for arch, model in models.items()}
        return {name: Variant(count_parameters(MODELS.build({**row.settings, 'init_cfg': None})), tuple(row.channels),
                              (4, 8, 16, 32) if len(row.channels) > 1 else (16, )) for name, row in rows.items()}


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def name_source(collection: dict[str, Any]) -> str:
    """A link to the published code, by its owner and name."""
    url = collection['Code']['URL']
    return f'[{url.removeprefix("https://github.com/")}]({url})'


def list_systems(index: dict[str, list[dict]]) -> list[str]:
    """The table of systems: a row for each."""
    rows = []
    for collection in index['Collections']:
        name, paper = collection['Name'], collection['Paper']
        variants = size_variants(collection['Name'])
        sizes = [variant.parameters / 1e6 for variant in variants.values()]
        best = find_best(collection, index) if is_ours(collection) else f'code and results of {name_library(collection)}'
        rows.append((name, f'[{paper["Title"]}]({paper["URL"]})', ', '.join(variants), f'{min(sizes):.1f} to {max(sizes):.1f}',
                     best, f'[{name}](docs/model_zoo.md#{name.lower()})'))
    return table(('system', 'paper', 'variants (`arch`)', 'parameters, M', 'best published result', 'configs'), rows)


def is_ours(collection: dict[str, Any]) -> bool:
    """Whether a system is a class of this project, not a library's code."""
    return collection['Name'] not in load_config(LIBRARIES).backbones


def name_library(collection: dict[str, Any]) -> str:
    """Such as ``MMDetection``, with a link to it."""
    return f'[{collection["Library"]}]({collection["Code"]["URL"]})'


def find_best(collection: dict[str, Any], index: dict[str, list[dict]]) -> str:
    """Such as ``top-1 82.6 (SimViT small)`` and where it was published."""
    for metric, short in METRICS.items():
        found = [(result['Metrics'][metric], entry['Config']) for entry in index['Models']
                 if entry['In Collection'] == collection['Name'] for result in entry['Results'] if metric in result['Metrics']]
        if found:
            score, config = max(found, key=lambda pair: pair[0])
            model = backbone(load_config(ROOT / config)).removesuffix(' (changed)')
            source = name_source(collection) if collection['Results Source'] else 'the paper'
            return f'{short} {score} ({model}), {source}'
    return ''


def list_channels(index: dict[str, list[dict]]) -> list[str]:
    """The table of channels and strides: a row for the variants of a system that have the same."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for collection in filter(is_ours, index['Collections']):
        for arch, variant in size_variants(collection['Name']).items():
            key = collection['Name'], ', '.join(map(str, variant.channels)), ', '.join(map(str, variant.strides))
            rows.setdefault(key, []).append(arch)
    return table(('backbone', '`arch`', 'channels (`in_channels` of what follows)', 'strides'),
                 [(name, ', '.join(archs), channels, strides) for (name, channels, strides), archs in rows.items()])


def list_classes(index: dict[str, list[dict]]) -> list[str]:
    """The classes, as mkdocstrings names them."""
    kinds = [MODELS.get(collection['Name']) for collection in filter(is_ours, index['Collections'])]
    return [f'::: {kind.__module__}.{kind.__qualname__}' for kind in kinds]


def render_page(counts: dict[str, Any], index: dict[str, list[dict]]) -> str:
    """The model zoo."""
    entries = {entry['Config'].removeprefix('configs/'): entry for entry in index['Models']}
    number = sum('Reproduced' in entry['Metadata'] for entry in entries.values())
    lines = [HEAD.format(reproduced=f'there are {number}' if number else 'there is none yet')]
    for collection in index['Collections']:
        name, paper = collection['Name'], collection['Paper']
        rows = [path for path in counts if path in entries and entries[path]['In Collection'] == name]
        lines += [f'## {name}', f'[{paper["Title"]}]({paper["URL"]})', '', *list_sources(collection),
                  *(f'- {note}' for note in collection.get('Notes', [])), '',
                  *list_variants(collection, rows, counts, entries), '', *list_configs(rows, counts, entries), '']
    lines += ['## Generated images, your own data',
              'These configs have small heads and short schedules. Nothing was published for them.', '',
              *list_configs([path for path in counts if path not in entries], counts, entries), '']
    return '\n'.join(lines)


def list_sources(collection: dict[str, Any]) -> list[str]:
    """Whose the code, the weights and the results of a system are."""
    licence = collection['License']
    if not is_ours(collection):
        return [f'- Code: {name_library(collection)}, {licence}. Its model zoo has other configs, and results.',
                '- Weights: those that it links to, pretrained on ImageNet-1k. A training downloads them.']
    published = MODELS.get(collection['Name']).published
    source = ' and '.join(f'`{file}`' for file in collection['Results Source'])
    origin = 'from its ' + source if source else "the paper's"
    return [f'- Published code and weights: {name_source(collection)}. The published results are {origin}.',
            f'- Variants with published weights: {", ".join(published.released if published else ()) or "none"}.',
            f'- Licence of the published code and weights: {licence}.']


def list_variants(collection: dict[str, Any], paths: list[str], counts: dict[str, Any],
                  entries: dict[str, Any]) -> list[str]:
    """The table of a system's variants, with what its classifiers say of them."""
    classifiers: dict[str, str] = {}
    for path in paths:
        if find_task(path) == TASKS['imagenet']:
            classifiers.setdefault(backbone(load_config(ROOT / 'configs' / path)).removesuffix(' (changed)'), path)
    rows = []
    for arch, variant in size_variants(collection['Name']).items():
        row = [arch, ', '.join(map(str, variant.channels)), f'{variant.parameters:,}', '', '', '']
        if config := classifiers.get(f'{collection["Name"]} {arch}'):
            entry = entries[config]
            row[3:] = (gigas(counts[config]['macs']), str(entry['Metadata'].get('Published GMACs', '')),
                       str(entry['Results'][0]['Metrics'].get('Top 1 Accuracy', '')))
        rows.append(row)
    return table(('variant', 'channels', 'parameters', 'GMACs', 'published GMACs', 'published top-1'), rows)


def list_configs(paths: list[str], counts: dict[str, Any], entries: dict[str, Any]) -> list[str]:
    rows = []
    for path in paths:
        cfg = load_config(ROOT / 'configs' / path)
        entry = entries.get(path, {})
        published = ', '.join(filter(None, (scores(result['Metrics']) for result in entry.get('Results', []))))
        reproduced = scores(entry.get('Metadata', {}).get('Reproduced', {}))
        rows.append((f'`{Path(path).stem}`', backbone(cfg), f'{counts[path]["parameters"]:,}', gigas(counts[path]['macs']),
                     schedule(cfg), published, reproduced))
    return table(('config', 'backbone', 'parameters', 'GMACs', 'schedule', 'published', 'reproduced here'), rows)


def gigas(number: float) -> str:
    """Such as ``247.2`` and ``0.65``."""
    return f'{number / 1e9:.{1 if number >= 1e9 else 2}f}'


def scores(metrics: dict[str, float]) -> str:
    return ', '.join(f'{METRICS.get(name, name)} {value}' for name, value in metrics.items())


def backbone(cfg: Config) -> str:
    """Such as ``SimViT tiny``, ``Swin t``, ``ResNet 18``, or ``LIT s (changed)`` for one of that size with other windows."""
    settings = cfg.model.backbone
    kind, name = MODELS.get(settings.type), settings.type.split('.')[-1]
    if kind is None or not issubclass(kind, Backbone):
        rows = [(f'{system} {variant}', row.settings) for system, variants in cfg.get('backbones', {}).items()
                for variant, row in variants.items()]
        found = [label for label, known in rows if {**settings, **known, 'init_cfg': settings.get('init_cfg')} == settings]
        return found[0] if found else f'{name} {settings.get("depth", "")}'.strip()
    with torch.device('meta'):
        model = MODELS.build({**settings, 'init_cfg': None})
    variant = model.find_variant()
    if variant is None:
        return f'{name} (smaller)'
    # As text, for a config may have a list where the variant has a tuple.
    given, known = (json.dumps(arch, sort_keys=True) for arch in (model.arch, kind.arch_zoo[variant]))
    return f'{name} {variant}' + (' (changed)' if given != known else '')


def schedule(cfg: Config) -> str:
    """Such as ``12 epochs, batch size 16``."""
    loop = cfg.train_cfg
    length = f'{loop.max_iters // 1000}k iterations' if loop.get('max_iters', 0) >= 1000 else (
        f'{loop.max_iters} iterations' if 'max_iters' in loop else f'{loop.max_epochs} epochs')
    return f'{length}, batch size {cfg.auto_scale_lr.base_batch_size}'


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
    counts = dict(sorted(counts.items()))
    rows = (f' {json.dumps(name)}: {json.dumps(found)}' for name, found in counts.items())
    COUNTS.write_text('{\n' + ',\n'.join(rows) + '\n}\n')
    for path, text in render_all(counts).items():
        path.write_text(text)


if __name__ == '__main__':
    main()
