"""What of a model's settings has to change for its backbone, found by dry runs and proved by one."""
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from .dry_run import DryRun, Misfit, dry_run, find_backbone
from .errors import ModelError

Path = tuple[str | int, ...]
MOST_REPAIRS = 60
OF_MAPS = 'the widths of the maps that it takes'


def build(model: dict, scope: str) -> nn.Module:
    """A model's modules as they are made, on one process."""
    model = ConfigDict(copy.deepcopy(model))
    for _, part in walk(model):
        if part.get('type') in ('SyncBN', 'MMSyncBN'):
            part['type'] = 'BN'
        if part.get('teacher_ckpt'):  # nothing is downloaded
            part['teacher_ckpt'] = None
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(model)


def walk(node: Any, path: Path = ()) -> Iterator[tuple[Path, dict]]:
    """All dicts in a nested config, with the keys that lead to each."""
    if isinstance(node, dict):
        yield path, node
    for key, part in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ():
        yield from walk(part, (*path, key))


def at(node: Any, path: Path) -> Any:
    """What some keys lead to."""
    for key in path:
        node = node[key]
    return node


class Fitter:
    """Fits the rest of a model to its backbone, from dry run to dry run.

    Args:
        cfg: a whole config, of which the ``model`` is enough; it is copied.
        scope: the library.
        maps: (channels, stride) of all maps of the backbone, as its ``out_indices`` count them.
        old: what was seen of the model, or of the backbone, as it was.
    """

    def __init__(self, cfg: dict, scope: str, maps: Sequence[tuple[int, int]], old: DryRun) -> None:
        self.original, self.scope, self.maps, self.old = cfg, scope, maps, old
        self.cfg = copy.deepcopy(cfg)
        self.keys: Path = ('model', *find_backbone(cfg['model']))
        self.prefix: Path = tuple(key for key in self.keys if key in ('model', 'detector'))  # of whatever has the backbone
        self.why: dict[Path, str] = {}  # reasons of changes, by the keys that lead there
        self.notes: list[str] = []  # what a user should know
        self.chosen: list[int] = []
        self.fewer_maps = False  # whether the backbone returns fewer where a neck takes fewer, or the neck takes more

    def set(self, path: Path, value: Any, why: str = '') -> None:
        """Change a setting, for a reason."""
        node, key = at(self.cfg, path[:-1]), path[-1]
        if isinstance(node, dict) and key in node and node[key] == value:
            return
        node[key] = value
        self.why[path] = why

    def build(self) -> nn.Module:
        """The model as it is now."""
        model = dict(self.cfg['model'])
        if self.cfg.get('data_preprocessor'):
            model.setdefault('data_preprocessor', self.cfg['data_preprocessor'])  # as mmengine's Runner does
        return build(model, self.scope)

    def fit(self) -> DryRun:
        """Choose maps, and change what dry runs show not to fit.

        Returns:
            The proof.

        Raises:
            ModelError: if something is left that no change of widths or strides cures.
        """
        start, first = (self.cfg, self.why), None
        for plan in self.plans():
            (self.cfg, self.why), self.notes = copy.deepcopy(start), []
            try:
                plan()
                self.choose_maps()
                self.share_map()
                seen = self.repair()
            except ModelError as error:
                first = first or error
                continue
            self.warn(seen)
            if 0 < len(seen.read) < len(self.chosen) and self.has_parameters_of_unread(seen.read):
                seen = self.leave_out_unread(seen)
            return seen
        assert first is not None
        raise first

    def plans(self) -> Iterator[Callable[[], None]]:
        """What is taken out before widths are looked at: nothing; or parts that fit one kind of backbone alone."""
        root = at(self.cfg, self.prefix)
        one_stride = len(self.old.strides) > 1 and len(set(self.old.strides)) == 1
        if root.get('neck') and one_stride and len({stride for _, stride in self.maps}) > 1:
            yield lambda: self.set((*self.prefix, 'neck'), None, 'which makes maps of several strides out of one')
        yield lambda: None
        if (root.get('roi_head') or {}).get('shared_head'):
            yield self.without_shared_head
        if isinstance(root.get('head'), dict) and root.get('type') in ('ImageClassifier', None):
            yield lambda: self.set((*self.prefix, 'neck'), dict(type='GlobalAveragePooling'), 'of the last map')

    def without_shared_head(self) -> None:
        """Take out the last stage of a ResNet that computes on regions."""
        path = (*self.prefix, 'roi_head')
        self.set((*path, 'shared_head'), None, 'the last stage of a ResNet')
        for inner, node in walk(at(self.cfg, path), path):
            if 'output_size' in node and 'featmap_strides' not in node:
                self.set((*inner, 'output_size'), node['output_size'] // 2, 'the size that followed the shared head')

    def choose_maps(self) -> None:
        """Those of the strides that the old maps had, or as many of the last as it had."""
        strides, have = self.old.strides, [stride for _, stride in self.maps]
        pooled = self.why.get((*self.prefix, 'neck')) == 'of the last map'
        if not strides or strides == [0] or pooled or (len(strides) == 1 and self.scope == 'mmpretrain'):
            self.chosen = [len(have) - 1] if strides else [*range(len(have))]
        elif len(set(strides)) == len(strides) and set(strides) <= set(have):
            self.chosen = [have.index(stride) for stride in sorted(strides)]
        else:
            self.chosen = [*range(len(have))][-len(strides):]
        self.set_maps('the maps of the strides that the old backbone gave, or as many of the last')

    def set_maps(self, why: str) -> None:
        """Have the backbone return the chosen maps."""
        if self.chosen != [*range(len(self.maps))] or 'out_indices' in at(self.cfg, self.keys):
            self.set((*self.keys, 'out_indices'), tuple(self.chosen), why)

    @property
    def widths(self) -> list[int]:
        """Of the chosen maps."""
        return [self.maps[place][0] for place in self.chosen]

    def share_map(self) -> None:
        """Heads of a cascade that took two maps of one stride take one map, the last, where the new ones differ."""
        heads, old = at(self.cfg, self.prefix).get('decode_head'), self.old.strides
        if not isinstance(heads, (list, tuple)) or not all(isinstance(head.get('in_index'), int) for head in heads):
            return
        indices = [head['in_index'] for head in heads]
        if len(set(indices)) > 1 and len(old) == len(self.chosen) and len({old[index] for index in indices}) == 1:
            for place in range(len(heads)):
                path: Path = (*self.prefix, 'decode_head', place)
                self.set((*path, 'in_channels'), self.widths[max(indices)], 'of the last map')
                self.set((*path, 'in_index'), max(indices), 'the heads of a cascade take maps of one size')

    def repair(self) -> DryRun:
        """Change what does not fit until a dry run ends well.

        Raises:
            ModelError: if nothing is found to change.
        """
        tried: set[str] = set()
        while True:
            try:
                model = self.build()
            except Exception as error:  # of any kind: a head that compares its own settings
                seen = DryRun('', [], [], [], Misfit(f'it cannot be built: {type(error).__name__} {error}', 'other'))
            else:
                seen = dry_run(model)
            misfit = seen.misfit
            if misfit is None:
                return seen
            if misfit.line in tried or len(tried) > MOST_REPAIRS or not self.mend(misfit):
                raise ModelError(f'this model does not take the maps of {at(self.cfg, self.keys)["type"]}: {misfit.line}')
            tried.add(misfit.line)

    def mend(self, misfit: Misfit) -> bool:
        """Change the setting behind a misfit, if one is found."""
        takes, gets, path = misfit.takes, misfit.gets, self.locate(misfit.name)
        if misfit.kind == 'features' and gets not in [width for width, _ in self.maps]:
            return self.mend_flattened(path, takes, gets)
        if misfit.kind in ('channels', 'features'):
            return self.mend_width(misfit.name, takes, gets)
        if misfit.kind == 'index' and max(takes) < len(self.maps) > len(self.chosen):
            self.chosen = [*range(len(self.maps))]
            self.set_maps('as many maps as the heads count')
            return True
        if misfit.kind == 'maps' and isinstance(takes, (list, tuple)) and len(takes) <= len(gets):
            if len(takes) < len(gets) == len(self.chosen) and self.fewer_maps:
                self.chosen = self.chosen[-len(takes):]
                self.set_maps('as many maps as it takes')
                return True
            node = at(self.cfg, path)
            key = next((key for key in ('in_channels', 'out_channels') if isinstance(node, dict) and isinstance(
                node.get(key), (list, tuple)) and list(node[key]) == list(takes) != gets), None)
            return key is not None and self.set_width((*path, key), gets)
        if misfit.kind == 'strides':
            have = [self.maps[place][1] for place in self.chosen]
            if len(takes) < len(have) and set(takes) <= set(have):
                self.select([have.index(stride) for stride in takes], 'the maps of the strides that the heads have')
                return True
            return len(takes) == len(gets) and self.mend_strides(path, takes, gets)
        return False

    def locate(self, name: str) -> Path:
        """The keys of the settings that a module, or the nearest around it, was made of."""
        path: Path = self.prefix
        node = at(self.cfg, path)
        for part in name.split('.'):
            if isinstance(node, dict) and isinstance(node.get(part), (dict, list, tuple)):
                path, node = (*path, part), node[part]
            elif isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
                path, node = (*path, int(part)), node[int(part)]
            elif not (isinstance(node, dict) and part.isdigit()):
                break
        return path

    def mend_width(self, name: str, takes: int, gets: int) -> bool:
        """Change the width that a layer was made with, in its settings or those around it."""
        path = self.locate(name)
        for length in range(len(path), len(self.prefix) - 1, -1):
            node = at(self.cfg, path[:length])
            if not isinstance(node, dict):
                continue
            given, index, mine = node.get('in_channels'), node.get('in_index'), self.widths
            if isinstance(given, (list, tuple)) and (takes in given or takes == sum(given)):
                if isinstance(index, (list, tuple)) and all(-len(mine) <= one < len(mine) for one in index):
                    mine = [mine[one] for one in index]
                ordered = mine[::-1] if given[0] > given[-1] else mine
                if len(given) == len(mine) and list(given) != ordered:
                    return self.set_width((*path[:length], 'in_channels'), ordered)
            names = [key for key in map(str, node) if 'in_channels' in key or key == 'channels'
                     or (key == 'out_channels' and 'featmap_strides' in node)]
            # c1_in_channels is that of c1_bottleneck.
            names.sort(key=lambda key: (not (key.endswith('_in_channels') and f'.{key[:-11]}' in name), key != 'in_channels'))
            for exact in (True, False):
                for key in names:
                    entries = [*node[key]] if isinstance(node[key], (list, tuple)) else [node[key]]
                    for place, entry in enumerate(entries):
                        if not isinstance(entry, int) or (exact and entry != takes):
                            continue
                        new = gets if exact else entry - takes + gets  # of maps that are joined
                        known = [width for width, _ in self.maps]
                        if exact or (new in known and not (entry in known and len(entries) == 1)):
                            entries[place] = new
                            return self.set_width((*path[:length], key), entries if len(entries) > 1 or isinstance(
                                node[key], (list, tuple)) else new)
        return False

    def mend_flattened(self, path: Path, takes: int, gets: int) -> bool:
        """Change the width of regions that a linear layer takes with all of their pixels, which are as many as before."""
        for length in range(len(path), len(self.prefix) - 1, -1):
            node = at(self.cfg, path[:length])
            given = node.get('in_channels') if isinstance(node, dict) else None
            if isinstance(given, int) and takes % given == 0 and gets * given % takes == 0 and any(
                    gets * given // takes == width for width, _ in self.maps):
                return self.set_width((*path[:length], 'in_channels'), gets * given // takes)
        return False

    def set_width(self, path: Path, value: Any) -> bool:
        """Change widths, and what was made to follow them: what begins with them, and a head that is as wide as its map."""
        node, given = at(self.cfg, path[:-1]), at(self.cfg, path)
        more, count = node.get('out_channels'), len(given) if isinstance(given, (list, tuple)) else 0
        if not isinstance(value, list):
            self.set(path, value, 'the width of the map that it takes')
            if path[-1] == 'in_channels' and node.get('channels') == given:
                self.set((*path[:-1], 'channels'), value, 'as wide as the map, as it was')
            return True
        self.set(path, type(given)(value), OF_MAPS)
        if path[-1] == 'in_channels' and isinstance(more, (list, tuple)) and count > 1 and [*more[:count]] == [*given]:
            self.set((*path[:-1], 'out_channels'), type(more)([*value, *more[count:]]), 'it begins with the widths of maps')
        return True

    def mend_strides(self, path: Path, takes: list, gets: list) -> bool:
        """Change the strides that priors or extractors of regions have."""
        node = at(self.cfg, path)
        for inner, part in walk(node, path):
            for key in ('strides', 'featmap_strides', 'stride'):
                if isinstance(part.get(key), (list, tuple)) and [
                        max(s) if isinstance(s, (list, tuple)) else s for s in part[key]] == takes:
                    self.set((*inner, key), gets, 'the strides of the maps that it takes')
                    return True
        if isinstance(node, dict) and 'type' in node:
            self.set((*path, 'strides'), gets, 'the strides of the maps that it takes')
            return True
        return False

    def has_parameters_of_unread(self, read: list[int]) -> bool:
        """Whether the backbone has parameters, such as norms, for maps alone that nothing reads: they get no gradient."""
        backbone = at(self.cfg, self.keys)
        every, some = ({name for name, _ in build({**backbone, 'out_indices': indices}, self.scope).named_parameters()}
                       for indices in (tuple(self.chosen), tuple(self.chosen[place] for place in read)))
        return bool(every - some)

    def leave_out_unread(self, seen: DryRun) -> DryRun:
        """Return only the maps that are read, if the rest can do with them."""
        before, total = copy.deepcopy((self.cfg, self.why, self.chosen)), len(self.chosen)
        self.select(seen.read, 'the maps that are read: norms of others would have no gradient, which stops several GPUs')
        try:
            return self.repair()
        except ModelError:
            self.cfg, self.why, self.chosen = before
            unread = [place for place in range(total) if place not in seen.read]
            self.notes.append(f'nothing reads the maps {unread} of the backbone, whose norms get no gradient, and the rest '
                              'cannot do without them: find_unused_parameters=True lets several GPUs train it')
            self.set(('find_unused_parameters', ), True, 'for several GPUs')
            return seen

    def select(self, kept: list[int], why: str) -> None:
        """Return some of the maps alone, and count these in what follows."""
        total, places = len(self.chosen), {place: new for new, place in enumerate(kept)}
        self.chosen = [self.chosen[place] for place in kept]
        self.set_maps(why)
        for path, node in [*walk(self.cfg['model'], ('model', ))]:
            if path[:len(self.keys)] == self.keys:
                continue
            index, widths, level = node.get('in_index'), node.get('in_channels'), node.get('start_level')
            indices = [*index] if isinstance(index, (list, tuple)) else [index] if isinstance(index, int) else []
            if indices and all(one % total in places for one in indices):
                new = [places[one % total] for one in indices]
                self.set((*path, 'in_index'), new[0] if isinstance(index, int) else new, 'counted among the maps returned')
            elif not indices and isinstance(widths, (list, tuple)) and len(widths) == total:
                self.set((*path, 'in_channels'), [widths[place] for place in kept], OF_MAPS)
                if level and kept == [*range(level, total)]:
                    self.set((*path, 'start_level'), 0, 'counted among the maps returned')

    def warn(self, seen: DryRun) -> None:
        """Say what fits and is yet not as it was."""
        old, new = self.old.strides, seen.strides
        if len(set(old)) < len(old) == len(new) and any(0 < before < after for before, after in zip(old, new)):
            self.notes.append(f'the old maps had strides {old}, these have {new}: a head made for dilated maps predicts '
                              'coarser; UPerNet, FPN, SegFormer and Mask2Former are made for such maps')

    def changes(self) -> tuple[list[str], dict]:
        """What a config that inherits the original has to say: lines that change parts of lists, and nested settings."""
        lines: list[str] = []

        def collect(node: dict, old: Any, path: Path) -> dict:
            found: dict = {}
            for key, value in node.items():
                here = (*path, key)
                before = old.get(key) if isinstance(old, dict) else None
                inner = [known for known in self.why if known[:len(here)] == here]
                if here in self.why:
                    found[key] = {'_delete_': True, **value} if isinstance(value, dict) and isinstance(before, dict) else value
                elif inner and isinstance(value, dict):
                    found[key] = collect(value, before, here)
                elif inner:
                    lines.append(f'{key} = _base_.{".".join(map(str, here))}')
                    lines.extend(f'{key}{"".join(f"[{part!r}]" for part in known[len(here):])} = {spell(at(self.cfg, known))}'
                                 for known in inner if not any(known[:length] in self.why for length in range(len(known))))
                    found[key] = Raw(key)
            return found
        return lines, collect(self.cfg, self.original, ())


class Raw(str):
    """Code, not a text."""


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


def advise(model: dict, seen: DryRun, scope: str, unread: bool = False) -> str | None:
    """What a model's config has to say to fit its backbone, found and proved by dry runs; None if that is not found.

    Args:
        model: the settings.
        seen: a dry run of it.
        scope: the library.
        unread: whether to leave out maps that nothing reads, where all fits.
    """
    cfg = {'model': ConfigDict(copy.deepcopy(model)).to_dict()}
    for fewer_maps in (False, True):
        try:
            module: Any = build(at(cfg['model'], find_backbone(cfg['model'])), scope)
            fitter = Fitter(cfg, scope, [tuple(info) for info in module.describe_maps()], seen)
            fitter.chosen, fitter.fewer_maps = [*module.out_indices], fewer_maps
            if unread and not fitter.has_parameters_of_unread(seen.read):
                return None
            if unread:
                fitter.leave_out_unread(seen)
            else:
                fitter.repair()
        except ModelError:
            continue
        lines, settings = fitter.changes()
        return '; '.join([*lines, *(f'{key} = {spell(value)}' for key, value in settings.items())])
    return None
