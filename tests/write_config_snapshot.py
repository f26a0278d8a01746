"""Write tests/config_snapshot.txt: what each config says of model, data and training. Look at the diff before you keep it."""
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmsimvit.backbones import Backbone
from tests.conftest import ROOT, load_tool

FILE = ROOT / 'tests/config_snapshot.txt'
COMMAND = 'python -m tests.write_config_snapshot'
model_zoo = load_tool(ROOT / 'tools/model_zoo.py')
CONFIGS = [path.relative_to(ROOT / 'configs').as_posix() for path in model_zoo.config_files()]


def describe(cfg: Config) -> dict[str, str]:
    """What a config says, by the name of each line."""
    model, wrapper, training = cfg.model, cfg.optim_wrapper, cfg.train_dataloader
    backbone = build_backbone(cfg)
    lines = {
        'variant': model_zoo.backbone(cfg),
        'backbone': show({**model.backbone, 'init_cfg': None}),
        'maps': show({key: getattr(backbone, key) for key in ('out_channels', 'strides', 'drop_path_rate')}
                     if isinstance(backbone, Backbone) else {}),
        'weights': model.get('teacher') or (model.backbone.get('init_cfg') or {}).get('checkpoint', 'random'),
        'parts': '; '.join(dict.fromkeys(show_parts({**model, 'backbone': None}))),
        'pixels': show({key: model.data_preprocessor.get(key) for key in ('mean', 'std', 'size', 'pad_size_divisor')}),
        'training data': show_data(training),
        'test data': show_data(cfg.test_dataloader),
        'metric': show(cfg.test_evaluator),
        'optimizer': show({**wrapper, 'paramwise_cfg': None}),
        'paramwise': show(wrapper.get('paramwise_cfg') or {}),
        **show_groups(backbone, cfg),
        'schedule': '; '.join(map(show, cfg.param_scheduler)),
        'length': show(cfg.train_cfg),
        'batch size': f'{cfg.auto_scale_lr.base_batch_size}, on each GPU {training.batch_size}',
        'also': show({key: cfg.get(key) for key in ('custom_hooks', 'sync_bn', 'randomness')}),
    }
    return {key: line for key, line in lines.items() if line}


def show(value: Any) -> str:
    """Such as ``AdamW(lr=0.001, betas=[0.9, 0.999])``, without what is None; the outermost brackets only after a type."""
    if not isinstance(value, Mapping):
        return f'[{", ".join(map(show, value))}]' if isinstance(value, (list, tuple)) else str(value)
    words = ', '.join(f'{key}={f"({show(part)})" if isinstance(part, Mapping) and "type" not in part else show(part)}'
                      for key, part in value.items() if key != 'type' and part is not None)
    return (f'{value["type"]}({words})' if words else value['type']) if 'type' in value else words


def show_parts(part: Any) -> Iterator[str]:
    """All of a model that have a type and take channels or classes, with those."""
    for value in part.values() if isinstance(part, Mapping) else part:
        if isinstance(value, (Mapping, list)):
            if isinstance(value, Mapping) and 'type' in value and {'in_channels', 'num_classes'} & set(value):
                yield show({key: value.get(key) for key in ('type', 'in_channels', 'out_channels', 'channels', 'in_index',
                                                            'num_outs', 'num_classes')})
            yield from show_parts(value)


def show_data(loader: Mapping) -> str:
    dataset = loader['dataset'].get('dataset', loader['dataset'])
    steps = ' -> '.join(map(show, dataset['pipeline']))
    return f'{dataset["type"]} by {show(loader["sampler"])}: {steps}'


def build_backbone(cfg: Config) -> nn.Module:
    """Without its numbers."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope), model_zoo.without_numbers():
        return MODELS.build({**cfg.model.backbone, 'init_cfg': None})


def show_groups(backbone: nn.Module, cfg: Config) -> dict[str, str]:
    """Which of the backbone's parameters have weight decay, which have none, and which learn at another rate."""
    model = nn.ModuleDict(dict(backbone=backbone))  # by whose names the config's rules go
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')  # instead of a line for each parameter
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    logger.setLevel(level)
    groups = {parameter: group for group in optimizer.param_groups for parameter in group['params']}
    found: dict[str, set[str]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            group, kind = groups[parameter], f'{type(module).__name__}.{name}'
            found.setdefault('decayed' if group['weight_decay'] else 'not decayed', set()).add(kind)
            if group['lr'] != optimizer.defaults['lr']:
                found.setdefault(f'learning rate {group["lr"]:g}', set()).add(kind)
    return {key: ', '.join(sorted(kinds)) for key, kinds in sorted(found.items())}


def render(snapshot: Mapping[str, Mapping[str, str]]) -> str:
    """A block for each config: its name, then what it says; long lines go on below, further in."""
    return '\n'.join(line for name, lines in snapshot.items() for line in (name, *(
        textwrap.fill(f'{key}: {words}', 128, initial_indent=' ' * 2, subsequent_indent=' ' * 6, break_long_words=False,
                      break_on_hyphens=False) for key, words in lines.items()), ''))


def parse(text: str) -> dict[str, dict[str, str]]:
    """What ``render`` has written."""
    snapshot: dict[str, dict[str, str]] = {}
    for block in text.replace('\n' + ' ' * 6, ' ').split('\n\n'):
        name, *lines = block.strip().split('\n')
        snapshot[name] = dict(line.strip().split(': ', 1) for line in lines)
    return snapshot


def find_changes(stored: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Of one config, the lines that are not as stored."""
    return [f'{key}: {found.get(key, "nothing")}\n    stored: {stored.get(key, "nothing")}'
            for key in {**stored, **found} if stored.get(key) != found.get(key)]


if __name__ == '__main__':
    FILE.write_text(render({name: describe(Config.fromfile(ROOT / 'configs' / name)) for name in CONFIGS}), encoding='utf-8')
