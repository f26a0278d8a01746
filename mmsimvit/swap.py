"""Another backbone in a config: what of the rest has to change, found by dry runs and proved by one."""
import copy
import importlib
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path as File
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from .config_files import find_config
from .dry_run import DryRun, Misfit, dry_run, find_backbone
from .errors import ConfigError, ModelError
from .stacks import UPSTREAM, installed_stack

Path = tuple[str | int, ...]
MOST_REPAIRS = 60
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # of ImageNet's pixels, red first


class Fit(NamedTuple):
    """A model's config that fits its backbone."""
    model: dict
    why: dict[Path, str]  # reasons of changes, by the keys that lead there
    seen: DryRun  # the proof
    notes: list[str]  # what a user should know


def build(model: dict, scope: str) -> nn.Module:
    """A model's modules as they are made, on one process."""
    model = ConfigDict(copy.deepcopy(model))
    for part in walk(model):
        if part[1].get('type') in ('SyncBN', 'MMSyncBN'):
            part[1]['type'] = 'BN'
        if part[1].get('teacher_ckpt'):  # nothing is downloaded
            part[1]['teacher_ckpt'] = None
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(model)


def walk(node: Any, path: Path = ()) -> Iterator[tuple[Path, dict]]:
    """All dicts in a nested config, with the keys that lead to each."""
    if isinstance(node, dict):
        yield path, node
    for key, part in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ():
        yield from walk(part, (*path, key))


def at(model: Any, path: Path) -> Any:
    """What some keys lead to."""
    for key in path:
        model = model[key]
    return model


class Fitter:
    """Fits the rest of a model to its new backbone, from dry run to dry run.

    Args:
        model: a config's ``model``, which is copied.
        keys: those that lead to its backbone.
        scope: the library.
        maps: (channels, stride) of all maps of the new backbone, as its ``out_indices`` count them.
        old: what was seen of the model as it was.
    """

    def __init__(self, model: dict, keys: Path, scope: str, maps: Sequence[tuple[int, int]], old: DryRun) -> None:
        self.model, self.keys, self.scope, self.maps, self.old = copy.deepcopy(model), keys, scope, maps, old
        self.why: dict[Path, str] = {}
        self.notes: list[str] = []
        self.chosen: list[int] = []
        self.fewer_maps = False  # whether the backbone returns fewer where a neck takes fewer, or the neck takes more

    def set(self, path: Path, value: Any, why: str) -> None:
        """Change a setting, for a reason."""
        at(self.model, path[:-1])[path[-1]] = value
        self.why[path] = why

    def fit(self) -> Fit:
        """Choose maps, and change what dry runs show not to fit.

        Raises:
            ModelError: if something is left that no change of widths or strides cures.
        """
        start, first = self.model, None
        for plan in self.plans():
            self.model, self.why, self.notes = copy.deepcopy(start), {}, []
            try:
                plan()
                self.choose_maps()
                self.replace_widths()
                seen = self.repair()
            except ModelError as error:
                first = first or error
                continue
            if 0 < len(seen.read) < len(self.chosen) and self.has_parameters_of_unread(seen.read):
                self.warn(seen)
                seen = self.leave_out_unread(seen)
            else:
                self.warn(seen)
            return Fit(self.model, self.why, seen, self.notes)
        assert first is not None
        raise first

    def plans(self) -> Iterator[Callable[[], None]]:
        """What is taken out before widths are looked at: nothing; or parts that fit one kind of backbone alone."""
        neck, roi_head = self.root.get('neck'), self.root.get('roi_head') or {}
        one_stride = len(self.old.strides) > 1 and len(set(self.old.strides)) == 1
        if neck and one_stride and len({stride for _, stride in self.maps}) > 1:
            yield lambda: self.set((*self.prefix, 'neck'), None, 'which makes maps of several strides out of one')
        yield lambda: None
        if roi_head.get('shared_head'):
            yield self.without_shared_head
        if isinstance(self.root.get('head'), dict) and self.root.get('type') in ('ImageClassifier', None):
            yield lambda: self.set((*self.prefix, 'neck'), dict(type='GlobalAveragePooling'), 'of the last map')

    def without_shared_head(self) -> None:
        """Take out the last stage of a ResNet that computes on regions."""
        path = (*self.prefix, 'roi_head')
        self.set((*path, 'shared_head'), None, 'the last stage of a ResNet')
        for inner, node in walk(at(self.model, path)):
            if 'output_size' in node and 'featmap_strides' not in node:
                self.set((*path, *inner, 'output_size'), node['output_size'] // 2, 'the size that followed the shared head')

    @property
    def prefix(self) -> Path:
        """The keys of the detector, or of whatever has the backbone."""
        return tuple(key for key in self.keys if key == 'detector')

    @property
    def root(self) -> dict:
        """The settings there."""
        return at(self.model, self.prefix)

    def others(self) -> Iterator[tuple[Path, dict]]:
        """All settings but those of the backbone."""
        for path, node in walk(self.model):
            if path[:len(self.keys)] != self.keys:
                yield path, node

    def choose_maps(self) -> None:
        """Those of the strides that the old maps had, or as many of the last as it had."""
        strides, have = self.old.strides, [stride for _, stride in self.maps]
        added = self.why.get((*self.prefix, 'neck')) == 'of the last map'
        classifies = len(strides) == 1 and self.scope == 'mmpretrain'
        if not strides or strides == [0] or added or classifies:
            self.chosen = [len(have) - 1] if strides else [*range(len(have))]
        elif len(set(strides)) == len(strides) and set(strides) <= set(have):
            self.chosen = [have.index(stride) for stride in sorted(strides)]
        else:
            self.chosen = [*range(len(have))][-len(strides):]
        self.set_maps('the maps of the strides that the old backbone gave, or as many of the last')

    def set_maps(self, why: str) -> None:
        """Have the backbone return the chosen maps."""
        backbone = at(self.model, self.keys)
        if self.chosen == [*range(len(self.maps))] and 'out_indices' not in backbone:
            return
        self.set((*self.keys, 'out_indices'), tuple(self.chosen), why)

    def replace_widths(self) -> None:
        """The widths of the old maps, in lists of them, and in heads that take one by its index."""
        old, new = self.old.widths, [self.maps[place][0] for place in self.chosen]
        self.share_map()
        if len(old) != len(new):
            new = new[-len(old):] if len(old) < len(new) else new
        necked = bool(self.root.get('neck'))
        for path, node in list(self.others()):
            if necked and path[:len(self.prefix) + 1] != (*self.prefix, 'neck'):
                continue
            index = node.get('in_index', -1 if not necked and path and 'head' in str(path[-1]) else None)
            for key in ('in_channels', 'out_channels', 'c1_in_channels'):
                given = node.get(key)
                if key == 'out_channels':  # of extra layers, behind those of the backbone
                    if isinstance(given, (list, tuple)) and len(given) > len(old) > 1 and list(given[:len(old)]) == old \
                            and len(old) == len(new):
                        longer = [*new, *given[len(old):]]
                        self.set((*path, key), tuple(longer) if isinstance(given, tuple) else longer,
                                 'it begins with the widths of the maps')
                    continue
                if key == 'c1_in_channels' and old and given == old[0]:
                    self.set((*path, key), new[0], 'of the first map')
                elif isinstance(given, (list, tuple)) and (found := self.translate(list(given), index, old, new)):
                    self.set((*path, key), tuple(found) if isinstance(given, tuple) else found,
                             'the widths of the maps that it takes')
                elif isinstance(given, int) and isinstance(index, int) and -len(old) <= index < len(old) \
                        and given == old[index] and len(old) == len(new):
                    self.set((*path, key), new[index], f'of map {index}')
                    if node.get('channels') == given:
                        self.set((*path, 'channels'), new[index], 'as wide as the map, as it was')

    def share_map(self) -> None:
        """Heads of a cascade that took two maps of one stride take one map, the last, where the new ones differ."""
        heads, old = self.root.get('decode_head'), self.old.strides
        if not isinstance(heads, (list, tuple)) or not all(isinstance(head.get('in_index'), int) for head in heads):
            return
        indices = [head['in_index'] for head in heads]
        if len(set(indices)) > 1 and len(old) == len(self.chosen) and len({old[index] for index in indices}) == 1:
            for place in range(len(heads)):
                path = (*self.prefix, 'decode_head', place)
                self.set((*path, 'in_channels'), self.old.widths[max(indices)], '')
                self.set((*path, 'in_index'), max(indices), 'the heads of a cascade take maps of one size')

    @staticmethod
    def translate(given: list, index: Any, old: list[int], new: list[int]) -> list[int] | None:
        """New widths for a list of old ones, also for a part of them or from the last to the first; None if it is none."""
        if len(old) != len(new) or not old:
            return None
        if isinstance(index, (list, tuple)):
            places = [*index]
            if len(places) == len(given) and all(-len(old) <= i < len(old) for i in places) \
                    and [old[i] for i in places] == given:
                return [new[i] for i in places]
        if len(given) > len(old) > 1 and given[:len(old)] == old:
            return [*new, *given[len(old):]]
        for start in range(len(old) - len(given) + 1):
            part = slice(start, start + len(given))
            if old[part] == given:
                return new[part]
            if old[part][::-1] == given:
                return new[part][::-1]
        return None

    def repair(self) -> DryRun:
        """Change what does not fit until a dry run ends well.

        Raises:
            ModelError: if nothing is found to change.
        """
        tried: set[str] = set()
        while True:
            try:
                model = build(self.model, self.scope)
            except Exception as error:  # of any kind: a head that compares its own settings
                seen = DryRun('', [], [], [], Misfit(f'it cannot be built: {type(error).__name__} {error}', 'other'))
            else:
                seen = dry_run(model)
            misfit = seen.misfit
            if misfit is None:
                return seen
            if misfit.line in tried or len(tried) > MOST_REPAIRS or not self.mend(misfit):
                raise ModelError(f'this model does not take the maps of {at(self.model, self.keys)["type"]}: {misfit.line}')
            tried.add(misfit.line)

    def mend(self, misfit: Misfit) -> bool:
        """Change the setting behind a misfit, if one is found."""
        path = self.locate(misfit.name)
        if misfit.kind == 'features' and misfit.gets not in [width for width, _ in self.maps]:
            return False  # of a flattened map: it would hold for images of one size
        if misfit.kind in ('channels', 'features'):
            return self.mend_width(path, misfit.takes, misfit.gets)
        if misfit.kind == 'index' and max(misfit.takes) < len(self.maps) > len(self.chosen):
            self.chosen = [*range(len(self.maps))]
            self.set_maps('as many maps as the heads count')
            return True
        have = [stride for _, stride in (self.maps[place] for place in self.chosen)]
        fewer = misfit.kind == 'strides' and len(misfit.takes) < len(have) and set(misfit.takes) <= set(have)
        if fewer:
            self.select([have.index(stride) for stride in misfit.takes], 'the maps of the strides that the heads have')
            return True
        listed = misfit.kind == 'maps' and isinstance(misfit.takes, (list, tuple))
        if listed and len(misfit.takes) < len(misfit.gets) == len(have) and self.fewer_maps:
            self.chosen = self.chosen[-len(misfit.takes):]
            self.set_maps('as many maps as it takes')
            return True
        if listed and len(misfit.takes) <= len(misfit.gets):
            return self.mend_list(path, list(misfit.takes), misfit.gets)
        if misfit.kind == 'strides' and len(misfit.takes) == len(misfit.gets):
            return self.mend_strides(path, misfit.takes, misfit.gets)
        return False

    def locate(self, name: str) -> Path:
        """The keys of the settings that a module, or the nearest around it, was made of."""
        path: Path = self.prefix
        node = at(self.model, path)
        for part in name.split('.'):
            if isinstance(node, dict) and isinstance(node.get(part), (dict, list, tuple)):
                path, node = (*path, part), node[part]
            elif isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
                path, node = (*path, int(part)), node[int(part)]
            elif isinstance(node, dict) and part.isdigit():
                continue
            else:
                break
        return path

    def mend_width(self, path: Path, takes: int, gets: int) -> bool:
        """Change the width that a layer was made with, in its settings or those around it."""
        widths = [width for width, _ in self.maps]
        for length in range(len(path), len(self.prefix) - 1, -1):
            node = at(self.model, path[:length])
            if not isinstance(node, dict):
                continue
            given, index = node.get('in_channels'), node.get('in_index')
            mine = [self.maps[place][0] for place in self.chosen]
            if isinstance(given, (list, tuple)) and takes in given:
                if isinstance(index, (list, tuple)) and all(-len(mine) <= one < len(mine) for one in index):
                    mine = [mine[one] for one in index]
                ordered = mine[::-1] if list(given) == sorted(given, reverse=True) else mine
                if len(given) == len(mine) and self.mend_list(path[:length], list(given), ordered):
                    return True
            for wanted in (takes, None):
                names = [key for key in node if 'in_channels' in str(key) or key == 'channels'
                         or (key == 'out_channels' and 'featmap_strides' in node)]
                for key in sorted(names, key=lambda key: key != 'in_channels'):
                    given = node[key]
                    entries = list(given) if isinstance(given, (list, tuple)) else [given]
                    for place, entry in enumerate(entries):
                        if not isinstance(entry, int):
                            continue
                        new = gets if entry == wanted else entry - takes + gets if wanted is None else None
                        if new is None or (wanted is None and (new not in widths or (entry in widths and len(entries) == 1))):
                            continue
                        entries[place] = new
                        self.set((*path[:length], key), entries if isinstance(given, (list, tuple)) else entries[0],
                                 'the width of the map that it takes')
                        return True
        return False

    def mend_list(self, path: Path, takes: list, gets: list) -> bool:
        """Change a list of widths as a whole; some go from the last map to the first."""
        node = at(self.model, path)
        for key in ('in_channels', 'out_channels') if isinstance(node, dict) else ():
            if isinstance(node.get(key), (list, tuple)) and list(node[key]) == takes != gets:
                self.set((*path, key), gets, 'the widths of the maps that it takes')
                return True
        return False

    def mend_strides(self, path: Path, takes: list, gets: list) -> bool:
        """Change the strides that priors or extractors of regions have."""
        node = at(self.model, path)
        for inner, part in walk(node):
            for key in ('strides', 'featmap_strides', 'stride'):
                if isinstance(part.get(key), (list, tuple)) and [
                        max(s) if isinstance(s, (list, tuple)) else s for s in part[key]] == takes:
                    self.set((*path, *inner, key), gets, 'the strides of the maps that it takes')
                    return True
        if isinstance(node, dict) and 'type' in node:
            self.set((*path, 'strides'), gets, 'the strides of the maps that it takes')
            return True
        return False

    def has_parameters_of_unread(self, read: list[int]) -> bool:
        """Whether the backbone has parameters, such as norms, for maps alone that nothing reads: they get no gradient."""
        backbone = at(self.model, self.keys)
        every, some = ({name for name, _ in build({**backbone, 'out_indices': indices}, self.scope).named_parameters()}
                       for indices in (tuple(self.chosen), tuple(self.chosen[place] for place in read)))
        return bool(every - some)

    def leave_out_unread(self, seen: DryRun) -> DryRun:
        """Return only the maps that are read, if the rest can do with them."""
        before, total = copy.deepcopy((self.model, self.why, self.chosen)), len(self.chosen)
        self.select(seen.read, 'the maps that are read: norms of others would have no gradient, which stops several GPUs')
        try:
            return self.repair()
        except ModelError:
            self.model, self.why, self.chosen = before
            unread = [place for place in range(total) if place not in seen.read]
            self.notes.append(f'nothing reads the maps {unread} of the backbone, whose norms get no gradient, and the rest '
                              'cannot do without them: find_unused_parameters=True lets several GPUs train it')
            return seen

    def select(self, kept: list[int], why: str) -> None:
        """Return some of the maps alone, and count these in what follows."""
        total, places = len(self.chosen), {place: new for new, place in enumerate(kept)}
        self.chosen = [self.chosen[place] for place in kept]
        self.set_maps(why)
        for path, node in list(self.others()):
            index, widths, level = node.get('in_index'), node.get('in_channels'), node.get('start_level')
            if isinstance(index, int) and index % total in places:
                self.set((*path, 'in_index'), places[index % total], 'counted among the maps that are returned')
            elif isinstance(index, (list, tuple)) and all(one % total in places for one in index):
                self.set((*path, 'in_index'), [places[one % total] for one in index],
                         'counted among the maps that are returned')
            elif isinstance(widths, (list, tuple)) and len(widths) == total:
                self.set((*path, 'in_channels'), [widths[place] for place in kept], 'the widths of the maps that are returned')
                if level and kept == [*range(level, total)]:
                    self.set((*path, 'start_level'), 0, 'counted among the maps that are returned')

    def warn(self, seen: DryRun) -> None:
        """Say what fits and is yet not as it was."""
        dense = [old for old, new in zip(self.old.strides, seen.strides) if 0 < old < new]
        if dense and len(self.old.strides) == len(seen.strides) and len(set(self.old.strides)) < len(self.old.strides):
            self.notes.append(f'the old maps had strides {self.old.strides}, these have {seen.strides}: a head made for '
                              'dilated maps predicts coarser; UPerNet, FPN, SegFormer and Mask2Former are made for such maps')


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


def advise(model: dict, seen: DryRun, scope: str, unread: bool = False) -> str | None:
    """What a model's config has to say to fit its backbone, found and proved by dry runs; None if that is not found.

    Args:
        model: the settings.
        seen: a dry run of it.
        scope: the library.
        unread: whether to leave out maps that nothing reads, where all fits.
    """
    try:
        model = ConfigDict(copy.deepcopy(model)).to_dict()
        keys = find_backbone(model)
        backbone = at(model, keys)
        module: Any = build(backbone, scope)
        fitter = Fitter(model, keys, scope, [tuple(info) for info in module.describe_maps()], seen)
        fitter.chosen = list(module.out_indices)
        if unread:
            if not fitter.has_parameters_of_unread(seen.read):
                return None
            fitter.leave_out_unread(seen)
            if fitter.notes:
                return 'find_unused_parameters = True'
        else:
            try:
                fitter.repair()
            except ModelError:
                fitter = Fitter(model, keys, scope, fitter.maps, seen)
                fitter.chosen, fitter.fewer_maps = list(module.out_indices), True
                fitter.repair()
    except ModelError:
        return None
    new, inside = fitter.model, {}
    if (*keys, 'out_indices') in fitter.why:
        inside = {'out_indices': tuple(fitter.chosen)}
    at(new, keys[:-1])[keys[-1]] = copy.deepcopy(backbone)
    lines: list[str] = []
    changes = difference(model, new, (), ('-', ), {}, lines)
    if inside:
        node = changes
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = inside
    return '; '.join([*lines, f'model = {spell(changes)}'])


class Swapped(NamedTuple):
    """A config that inherits another and has another backbone."""
    text: str
    notes: list[str]
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
    cfg = Config.fromfile(path)
    if not cfg.get('model'):
        raise ModelError(f'{name} has no model; name the config of a detector, segmentor or classifier')
    scope = cfg.get('default_scope') or 'mmengine'
    if scope in ('mmdet', 'mmseg', 'mmpretrain'):
        importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    for module in imports:
        importlib.import_module(module)
    model = cfg._cfg_dict.to_dict()['model']
    original = copy.deepcopy(model)
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', cfg._cfg_dict.to_dict()['data_preprocessor'])
    reasons: dict[Path, str] = {}
    teacher = model.get('teacher_config')
    if isinstance(teacher, str) and not File(teacher).is_file():  # from the root of the library's sources
        model['teacher_config'] = str(File(str(find_spec(scope).origin)).parent / '.mim' / teacher)  # type: ignore[union-attr]
        reasons[('teacher_config', )] = 'where the installed library has it'
    keys = find_backbone(model)
    maps = find_maps(backbone, scope)
    former = {**at(model, keys), 'init_cfg': None}  # nothing is downloaded for a dry run
    former.pop('pretrained', None)
    try:
        old = dry_run(build(former, scope))
    except Exception as error:  # of any kind: the config as it was lacks something
        raise ModelError(f'the backbone {former["type"]} of {name} cannot be built: {" ".join(str(error).split())}') from error
    at(model, keys[:-1])[keys[-1]] = copy.deepcopy(backbone)
    for path_of, part in walk(model):
        if path_of in ((), keys[:-1]) and 'pretrained' in part:
            part['pretrained'] = None
    fit = Fitter(model, keys, scope, maps, old).fit()
    new = fit.model
    fit.why.update(reasons)
    for path_of, part in walk(original):
        if path_of in ((), keys[:-1]):
            for key in ('init_cfg', 'pretrained'):
                if part.get(key):
                    at(new, path_of)[key] = None
                    here = (*path_of, key)
                    fit.why[here] = 'weights of the old backbone'
    settings: dict[str, Any] = {}
    preprocess(original, new, cfg, fit.why, settings)
    if 'data_preprocessor' not in original:
        new.pop('data_preprocessor', None)
    if cfg.get('load_from'):
        settings['load_from'] = None
        fit.why[('load_from', )] = 'weights of the whole old model'
    if any('find_unused_parameters' in note for note in fit.notes):
        settings['find_unused_parameters'] = True
    if not keep_optimizer:
        settings |= optimize(cfg, scope, fit.why)
    text = write(name, base, cfg, backbone, keys, original, new, settings, fit, [*imports] or ['mmsimvit'])
    return Swapped(text, fit.notes, fit.seen)


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
        raise ConfigError(f'{name} is a config in pure Python, which a config with _base_ cannot inherit')
    beside = path.parent == File(folder).resolve()
    return str(path), path.name if beside else path.as_posix()


def preprocess(original: dict, new: dict, cfg: Config, why: dict, settings: dict) -> None:
    """Pixels as ImageNet's weights of transformers are trained with: red first, and standardised."""
    top = 'data_preprocessor' not in original
    for path, part in walk({'data_preprocessor': (cfg.get('data_preprocessor') or {}) if top else new['data_preprocessor']}
                           if top or 'data_preprocessor' in new else {}):
        kind = str(part.get('type', ''))
        if not path or not (kind.endswith('DataPreprocessor') or 'mean' in part) or (kind.startswith(('MultiBranch', 'Track')) \
                and 'mean' not in part) or len(part.get('mean') or MEAN) != 3:
            continue
        red = 'to_rgb' if top or 'to_rgb' in part else 'bgr_to_rgb'
        wanted = {'mean': MEAN, 'std': STD, red: True}
        changed = {key: value for key, value in wanted.items() if (list(part[key]) if isinstance(
            part.get(key), (list, tuple)) else part.get(key)) != value}
        if changed and part.get('rgb_to_bgr'):
            changed['rgb_to_bgr'] = False
        target = settings if top else new
        for key in path[:-1] if top else ():
            target = target.setdefault(key, {})
        node = target.setdefault(path[-1], {}) if top else at(new, path)
        node.update(changed)
        if top and not changed:
            settings.pop('data_preprocessor', None)
        for key in changed:
            here = (*path, key)
            why[here] = "ImageNet's pixels, red first, as pretrained weights know them"


OURS = 'LayerDecayOptimWrapperConstructor'


def optimize(cfg: Config, scope: str, why: dict) -> dict[str, Any]:
    """AdamW and a warm-up where the config has neither, and floors of the schedule in proportion."""
    wrapper = cfg._cfg_dict.to_dict().get('optim_wrapper')
    settings: dict[str, Any] = {}
    if not wrapper:
        return settings
    constructor = wrapper.get('constructor') or ''
    if constructor.startswith('LearningRateDecay'):
        paramwise = wrapper.get('paramwise_cfg') or {}
        rate = paramwise.get('layer_decay_rate', paramwise.get('decay_rate', 0.9))
        settings['optim_wrapper'] = dict(constructor=OURS, paramwise_cfg=dict(_delete_=True, layer_decay_rate=rate,
                                                                             norm_decay_mult=0., bypass_duplicate=True))
        why[('optim_wrapper', 'constructor')] = 'the old one knows the layers of its own backbones alone'
        return settings
    old = wrapper['optimizer']
    if old.get('type') in ('AdamW', 'Adam', 'Lion', 'Lamb'):
        return settings
    selfsup = cfg.model.get('type') in SELF_SUPERVISED or 'selfsup' in str(cfg.model.get('data_preprocessor', '')).lower()
    batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size') or (cfg.get('train_dataloader') or {}).get('batch_size', 16)
    if scope == 'mmseg':
        rate, decay = 6e-5, 0.01
    elif scope == 'mmpretrain':
        rate, decay = (1.5e-4 * batch / 256, 0.1) if selfsup else (1e-3 * batch / 1024, 0.05)
    else:
        rate, decay = 1e-4 * batch / 16, 0.05
    rate = float(f'{rate:.3g}')
    paramwise = dict(norm_decay_mult=0.)
    if (wrapper.get('paramwise_cfg') or {}).get('bypass_duplicate'):
        paramwise['bypass_duplicate'] = True
    if wrapper.get('paramwise_cfg'):
        paramwise = {'_delete_': True, **paramwise}
    settings['optim_wrapper'] = dict(optimizer=dict(_delete_=True, type='AdamW', lr=rate, weight_decay=decay),
                                     paramwise_cfg=paramwise)
    why[('optim_wrapper', )] = f'transformers are trained with AdamW; {old.get("type")} had lr={old.get("lr")}'
    schedule = cfg._cfg_dict.to_dict().get('param_scheduler')
    parts = [schedule] if isinstance(schedule, dict) else copy.deepcopy(schedule or [])
    changed = False
    for part in parts:
        if part.get('eta_min') and isinstance(old.get('lr'), float):
            part['eta_min'], changed = float(f'{part["eta_min"] * rate / old["lr"]:.3g}'), True
    if parts and not any('Warmup' in part['type'] or part['type'] == 'LinearLR' for part in parts):
        by_epoch = parts[0].get('by_epoch', True)
        total = (cfg.get('train_cfg') or {}).get('max_epochs' if by_epoch else 'max_iters') or 100
        end = max(1, total // 20) if by_epoch else min(1500, max(1, total // 20))
        warm = dict(type='LinearLR', start_factor=1e-3, by_epoch=by_epoch, begin=0, end=end)
        if by_epoch:
            warm['convert_to_iter_based'] = True
        parts, changed = [warm, *parts], True
    if changed:
        settings['param_scheduler'] = parts
        why[('param_scheduler', )] = 'with a warm-up, and floors in proportion to the rate'
    return settings


SELF_SUPERVISED = {'BarlowTwins', 'BYOL', 'DenseCL', 'MoCo', 'MoCoV3', 'SimCLR', 'SimSiam', 'SwAV'}


def write(name: str, base: str, cfg: Config, backbone: dict, keys: Path, original: dict, new: dict, settings: dict, fit: Fit,
          imports: list[str]) -> str:
    """The text of the new config."""
    before = cfg.get('custom_imports') or {}
    former = before.get('imports') or []
    wanted = list(dict.fromkeys([*([former] if isinstance(former, str) else former), *imports]))
    arch = f' {backbone["arch"]}' if isinstance(backbone.get('arch'), str) else ''
    lines = [f'# {backbone["type"]}{arch} in {name}: python -m mmsimvit swap. A dry run gave its maps strides '
             f'{fit.seen.strides} and channels {fit.seen.widths}.']
    lines += [f'# {note[:1].upper()}{note[1:]}.' for note in fit.notes]
    lines += [f'_base_ = {base!r}', f'custom_imports = dict(imports={wanted!r})']
    before_model: list[str] = []
    fitted = at(new, keys)
    at(new, keys[:-1])[keys[-1]] = {}
    changes = difference(original, new, (), keys, fitted, before_model)
    lines += before_model
    lines += ['model = dict(', *render(changes, (), fit.why, 1), ')']
    for key, value in settings.items():
        reason = fit.why.get((key, ))
        tail = f'  # {reason}' if reason else ''
        if isinstance(value, dict):
            lines += [f'{key} = dict({tail}', *render(value, (key, ), fit.why, 1), ')']
        elif isinstance(value, list):
            lines += [f'{key} = [{tail}', *(f'    {spell(part)},' for part in value), ']']
        else:
            lines.append(f'{key} = {value!r}{tail}')
    lines.append("# The backbone starts from random weights, or from init_cfg=dict(type='Pretrained', checkpoint=...).")
    return '\n'.join(lines) + '\n'


class Raw(str):
    """Code, not a text."""


def difference(old: Any, new: dict, path: Path, keys: Path, backbone: dict, lines: list[str]) -> dict:
    """What a config that inherits ``old`` has to say to be ``new``."""
    found: dict[Any, Any] = {}
    for key, value in new.items():
        here = (*path, key)
        if here == keys:
            found[key] = {'_delete_': True, **backbone}
        elif key in old and same(old[key], value) and here != keys[:len(here)]:
            continue
        elif isinstance(value, dict) and isinstance(old.get(key), dict):
            if value.get('type') != old[key].get('type'):
                found[key] = {'_delete_': True, **value}
            elif inner := difference(old[key], value, here, keys, backbone, lines):
                found[key] = inner
        elif isinstance(value, (list, tuple)) and any(isinstance(part, dict) for part in value):
            lines.append(f'{key} = _base_.model.{".".join(map(str, here))}')
            for place, (before, after) in enumerate(zip(old[key], value)):
                if (*here, place) == keys:
                    lines.append(f'{key}[{place}] = {spell(backbone)}')
                elif isinstance(after, dict):
                    lines += [f'{key}[{place}]{"".join(f"[{part!r}]" for part in inner)} = {spell(at(after, inner))}'
                              for inner in leaves(before, after)]
            found[key] = Raw(key)
        else:
            found[key] = value
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two settings are alike, lists and tuples too."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return (type(one) is type(other) and one == other) or one == other


def leaves(old: Any, new: dict, path: Path = ()) -> Iterator[Path]:
    """The keys of what differs."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            yield from leaves(old[key], value, (*path, key))
        elif key not in old or not same(old[key], value):
            yield (*path, key)


def render(node: dict, path: Path, why: dict, depth: int) -> list[str]:
    """Lines of a nested dict, with the reasons behind them."""
    lines = []
    for key, value in node.items():
        here, indent = (*path, key), '    ' * depth
        reason = why.get(here)
        tail = f'  # {reason}' if reason else ''
        inner = isinstance(value, dict) and any((*here, part) in why or isinstance(value[part], dict) for part in value)
        if isinstance(value, dict) and inner:
            lines += [f'{indent}{key}=dict({tail}', *render(value, here, why, depth + 1), f'{indent}),']
        else:
            lines.append(f'{indent}{key}={spell(value)},{tail}')
    return lines


def spell(value: Any) -> str:
    """A setting as it is written in a config."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={spell(part)}" for key, part in value.items())})'
    if isinstance(value, (list, tuple)):
        inside = ', '.join(map(spell, value))
        return f'[{inside}]' if isinstance(value, list) else f'({inside}{", " if len(value) == 1 else ""})'
    return repr(value)
