"""Another backbone in a config of the three libraries: a short config that inherits it and says what it changes."""
import copy
import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path as File
from typing import Any, NamedTuple

from mmengine.config import Config

from .config_files import find_config
from .dry_run import DryRun, dry_run, find_backbone
from .errors import ConfigError, ModelError
from .fitting import Fitter, Path, at, build, spell, walk
from .stacks import UPSTREAM, installed_stack

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # of ImageNet's pixels, red first
LIBRARIES = 'mmdet', 'mmseg', 'mmpretrain'
SELF_SUPERVISED = {'BarlowTwins', 'BYOL', 'DenseCL', 'MoCo', 'MoCoV3', 'SimCLR', 'SimSiam', 'SwAV'}
OURS = 'LayerDecayOptimWrapperConstructor'


class Swapped(NamedTuple):
    """A config that inherits another and has another backbone."""
    text: str
    notes: list[str]  # what a user should know
    seen: DryRun


def swap(name: str, backbone: dict, imports: Sequence[str] = (), keep_optimizer: bool = False,
         folder: str = '.') -> Swapped:
    """Put a backbone into a config.

    Args:
        name: the config: a file, or such as ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.
        backbone: its ``type`` and arguments; a type of mmsimvit, or of ``imports``.
        imports: modules that register it.
        keep_optimizer: whether optimizer and schedule stay as they are.
        folder: where the new config will lie.

    Raises:
        ConfigError: if there is no such config, or it cannot be inherited.
        ModelError: if the rest of the model cannot be made to fit; the message says what does not.
    """
    path, base = locate_config(name, folder)
    cfg = Config.fromfile(path)._cfg_dict.to_dict()
    if not cfg.get('model'):
        raise ModelError(f'{name} has no model; name the config of a detector, segmentor or classifier')
    scope = scope_of(cfg)
    if scope in LIBRARIES:
        importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    for module in imports:
        importlib.import_module(module)
    former = {**at(cfg['model'], find_backbone(cfg['model'])), 'init_cfg': None}  # nothing is downloaded for a dry run
    former.pop('pretrained', None)
    maps = find_maps(backbone, scope)
    try:
        old = dry_run(build(former, scope))
    except Exception as error:  # of any kind: the config as it was lacks something
        raise ModelError(f'the backbone {former["type"]} of {name} cannot be built: {" ".join(str(error).split())}') from error
    fitter = Fitter(cfg, scope, maps, old)
    fitter.set(fitter.keys, copy.deepcopy(backbone))
    for around in (fitter.keys[:1], fitter.keys[:-1]):
        for key in ('init_cfg', 'pretrained'):
            if isinstance(part := at(fitter.cfg, around), dict) and part.get(key):
                fitter.set((*around, key), None, 'weights of the old backbone')
    teacher = cfg['model'].get('teacher_config')
    if isinstance(teacher, str) and not File(teacher).is_file():  # from the root of the library's sources
        fitter.set(('model', 'teacher_config'), str(File(str(find_spec(scope).origin)).parent / '.mim' / teacher),  # type: ignore[union-attr]
                   'where the installed library has it')
    seen = fitter.fit()
    if cfg.get('load_from'):
        fitter.set(('load_from', ), None, 'weights of the whole old model')
    preprocess(fitter)
    if not keep_optimizer:
        optimize(fitter)
    return Swapped(write(name, base, fitter, seen, [*imports] or ['mmsimvit']), fitter.notes, seen)


def scope_of(cfg: dict) -> str:
    """The library of a config, which one in pure Python names in its types alone."""
    first = str(cfg['model'].get('type')).partition('.')[0]
    return cfg.get('default_scope') or (first if first in LIBRARIES else 'mmengine')


def find_maps(backbone: dict, scope: str) -> list[tuple[int, int]]:
    """(channels, stride) of all maps that a backbone has.

    Raises:
        ModelError: if it cannot be built, says nothing of its maps, or says what is not so.
    """
    name = backbone['type']
    try:
        module: Any = build(backbone, scope)
    except Exception as error:
        raise ModelError(f'{name} cannot be built: {" ".join(str(error).split())}') from error
    infos = module.describe_maps() if hasattr(module, 'describe_maps') else getattr(module, 'feature_info', None)
    if infos is None:
        raise ModelError(f'{name} has no feature_info, a channels and a stride for each map; which maps it has is not known')
    maps = [(info.channels, info.stride) if hasattr(info, 'channels') else (info['channels'], info['stride']) for info in infos]
    seen = dry_run(build({**backbone, 'out_indices': tuple(range(len(maps)))}, scope))
    if seen.misfit or list(zip(seen.widths, seen.strides)) != maps:
        raise ModelError(f'the feature_info of {name} says (channels, stride) {maps}, but a dry run '
                         f'{seen.misfit.line if seen.misfit else list(zip(seen.widths, seen.strides))}')
    return maps


def locate_config(name: str, folder: str) -> tuple[str, str]:
    """The path of a config, and what another in ``folder`` inherits it by.

    Raises:
        ConfigError: if there is none, or it is in pure Python.
    """
    library, found, rest = name.partition('::')
    if found:
        spec = find_spec(library)
        path = File(str(spec.origin)).parent / '.mim/configs' / rest if spec else None
        if path is None or not path.is_file():
            raise ConfigError(f'{library} is not installed' if spec is None else f'{library} has no config {rest}')
        return str(path), name if installed_stack() == UPSTREAM else str(path)
    path = File(find_config(name)).resolve()
    if 'read_base' in path.read_text():
        text = path.with_stem(f'{path.stem}_text')
        raise ConfigError(f'{name} is a config in pure Python, which a config with _base_ cannot inherit; swap its text, '
                          'which this writes: python -c "from mmengine.config import Config; '
                          f'Config.fromfile({str(path)!r}).dump({str(text)!r})"')
    beside = path.parent == File(folder).resolve()
    return str(path), path.name if beside else path.as_posix()


def preprocess(fitter: Fitter) -> None:
    """Pixels as ImageNet's weights of transformers are trained with: red first, and standardised."""
    inside = 'data_preprocessor' in fitter.cfg['model']
    where: Path = ('model', 'data_preprocessor') if inside else ('data_preprocessor', )
    for path, part in [*walk(at(fitter.cfg, where) if inside else fitter.cfg.get(where[0]), where)]:
        kind = str(part.get('type', ''))
        plain = kind.endswith('DataPreprocessor') and not kind.startswith(('MultiBranch', 'Track'))
        if not ('mean' in part or plain) or len(part.get('mean') or MEAN) != 3:
            continue
        wanted: dict[str, Any] = {'mean': MEAN, 'std': STD, 'to_rgb' if not inside or 'to_rgb' in part else 'bgr_to_rgb': True}
        changed = {key: value for key, value in wanted.items()
                   if (list(part[key]) if isinstance(part.get(key), tuple) else part.get(key)) != value}
        if changed and part.get('rgb_to_bgr'):
            changed['rgb_to_bgr'] = False
        for key, value in changed.items():
            fitter.set((*path, key), value, "ImageNet's pixels, red first, as pretrained weights know them")


def optimize(fitter: Fitter) -> None:
    """AdamW and a warm-up where the config has neither, and floors of the schedule in proportion."""
    cfg, scope = fitter.cfg, fitter.scope
    wrapper = cfg.get('optim_wrapper') or {}
    old, paramwise = wrapper.get('optimizer') or {}, wrapper.get('paramwise_cfg') or {}
    if (wrapper.get('constructor') or '').startswith('LearningRateDecay'):
        rate = paramwise.get('layer_decay_rate', paramwise.get('decay_rate', 0.9))
        fitter.set(('optim_wrapper', 'constructor'), OURS, 'the old one knows the layers of its own backbones alone')
        fitter.set(('optim_wrapper', 'paramwise_cfg'), dict(layer_decay_rate=rate, norm_decay_mult=0., bypass_duplicate=True))
        return
    if not wrapper or old.get('type') in ('AdamW', 'Adam', 'Lion', 'Lamb'):
        return
    model = cfg['model']
    selfsup = model.get('type') in SELF_SUPERVISED or 'selfsup' in str(model.get('data_preprocessor', '')).lower()
    batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size') or (cfg.get('train_dataloader') or {}).get('batch_size', 16)
    if scope == 'mmseg':
        lr, decay = 6e-5, 0.01
    elif scope == 'mmpretrain':
        lr, decay = (1.5e-4 * batch / 256, 0.1) if selfsup else (1e-3 * batch / 1024, 0.05)
    else:
        lr, decay = 1e-4 * batch / 16, 0.05
    lr = float(f'{lr:.3g}')
    fitter.set(('optim_wrapper', 'optimizer'), dict(type='AdamW', lr=lr, weight_decay=decay),
               f'transformers are trained with AdamW; {old.get("type")} had lr={old.get("lr")}')
    duplicates = {'bypass_duplicate': True} if paramwise.get('bypass_duplicate') else {}
    fitter.set(('optim_wrapper', 'paramwise_cfg'), dict(norm_decay_mult=0., **duplicates))
    parts = copy.deepcopy(cfg.get('param_scheduler') or [])
    parts = [parts] if isinstance(parts, dict) else parts
    for part in parts:
        if part.get('eta_min') and isinstance(old.get('lr'), float):
            part['eta_min'] = float(f'{part["eta_min"] * lr / old["lr"]:.3g}')
    if parts and not any('Warmup' in str(part['type']) or str(part['type']).endswith('LinearLR') for part in parts):
        by_epoch = parts[0].get('by_epoch', True)
        total = (cfg.get('train_cfg') or {}).get('max_epochs' if by_epoch else 'max_iters') or 100
        end = max(1, total // 20) if by_epoch else min(1500, max(1, total // 20))
        parts = [dict(type='LinearLR', start_factor=1e-3, by_epoch=by_epoch, begin=0, end=end,
                      **({'convert_to_iter_based': True} if by_epoch else {})), *parts]
    if parts and parts not in (cfg['param_scheduler'], [cfg['param_scheduler']]):
        fitter.set(('param_scheduler', ), parts, 'with a warm-up, and floors in proportion to the rate')


def write(name: str, base: str, fitter: Fitter, seen: DryRun, imports: list[str]) -> str:
    """The text of the new config."""
    former = (fitter.cfg.get('custom_imports') or {}).get('imports') or []
    wanted = list(dict.fromkeys([*([former] if isinstance(former, str) else former), *imports]))
    backbone = at(fitter.cfg, fitter.keys)
    arch = f' {backbone["arch"]}' if isinstance(backbone.get('arch'), str) else ''
    before, changes = fitter.changes()
    lines = [f'# {backbone["type"]}{arch} in {name}: python -m mmsimvit swap. A dry run gave its maps strides {seen.strides} '
             f'and channels {seen.widths}.', *(f'# {note[:1].upper()}{note[1:]}.' for note in fitter.notes),
             f'_base_ = {base!r}', f'custom_imports = dict(imports={wanted!r})', *before]
    for key, value in sorted(changes.items(), key=lambda item: item[0] != 'model'):
        tail = f'  # {reason}' if (reason := fitter.why.get((key, ))) else ''
        if isinstance(value, dict):
            lines += [f'{key} = dict({tail}', *render(value, (key, ), fitter.why, 1), ')']
        elif isinstance(value, list):
            lines += [f'{key} = [{tail}', *(f'    {spell(part)},' for part in value), ']']
        else:
            lines.append(f'{key} = {value!r}{tail}')
    lines.append("# The backbone starts from random weights, or from init_cfg=dict(type='Pretrained', checkpoint=...).")
    return '\n'.join(lines) + '\n'


def render(node: dict, path: Path, why: dict, depth: int) -> list[str]:
    """Lines of a nested dict, with the reasons behind them."""
    lines = []
    for key, value in node.items():
        here, indent = (*path, key), '    ' * depth
        tail = f'  # {reason}' if (reason := why.get(here)) else ''
        if isinstance(value, dict) and any((*here, part) in why or isinstance(value[part], dict) for part in value):
            lines += [f'{indent}{key}=dict({tail}', *render(value, here, why, depth + 1), f'{indent}),']
        else:
            lines.append(f'{indent}{key}={spell(value)},{tail}')
    return lines
