"""The contract that every backbone keeps."""
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from numbers import Integral, Real
from operator import eq
from typing import Any, NamedTuple, TypeGuard, cast

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit, trunc_normal_init, update_init_info
from torch import Tensor, nn

from ..layers import RelativePositionBias
from ..weights import CheckpointError, Published, load_file, match, recognise


def is_positive(value: object) -> bool:
    """Whether an argument is a positive whole number."""
    return isinstance(value, Integral) and int(value) >= 1


def is_rate(value: object) -> bool:
    """Whether an argument is a number in [0, 1)."""
    return isinstance(value, Real) and 0 <= float(value) < 1


def is_sequence(value: object) -> TypeGuard[Sequence]:
    """Whether an argument is a list or the like, not a text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def is_numbers(value: object, count: int) -> bool:
    """Whether an argument is a sequence of so many positive whole numbers."""
    return is_sequence(value) and len(value) == count and all(map(is_positive, value))


class FeatureInfo(NamedTuple):
    """What is known of a map before it is computed."""
    channels: int
    stride: int  # how many pixels of the image, in height and in width, one of the map stands for


class Layer(NamedTuple):
    """A part of a backbone, as ``layer_order`` lists them."""
    prefix: str | tuple[str, ...]  # of the names of its modules and parameters; several if they compute side by side
    stage: int  # it is frozen with so many stages: 0 is the stem
    is_block: bool = False  # blocks are what depths count, and the units of FSDP
    is_added: bool = False  # classifiers or base models lack it, so that a checkpoint to start from may be without

    @property
    def prefixes(self) -> tuple[str, ...]:
        """All prefixes, also where there is one."""
        return (self.prefix, ) if isinstance(self.prefix, str) else self.prefix


class Backbone(BaseModule):
    """Maps of an image, for the necks and heads of OpenMMLab's libraries.

    A subclass sets ``arch_zoo``, and in ``arch_rules`` what those keys take that do not go by ``get_arch_rule``. It says in
    ``describe_maps`` which maps it has, in ``layer_order`` in which order it computes, and computes in ``forward_features``.
    Its ``__init__`` builds what ``out_indices`` needs and ends with ``self.freeze()``.

    Args:
        arch: a published variant's name, or a dict of the same keys as the values of ``arch_zoo``.
        in_channels: channels of the input image.
        out_indices: which maps are returned, counted from 0, ascending; -1 for the last alone, None for all. What they do not
            need is not built.
        frozen_stages: -1 freezes nothing, 0 the stem, n >= 1 also the first n stages. Frozen modules have no gradient and
            stay in eval mode.
        drop_path_rate: drop path rate of the last block; the rate grows linearly from 0 at the first.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        init_cfg: as in mmengine. A ``Pretrained`` checkpoint must hold every parameter of the backbone, in its shape, but
            norms that classifiers lack and parts that base models lack; tables of positions are resampled from other sizes. It
            may be a checkpoint of a training here or a published one, of a classifier or for dense prediction: wrapper, prefix
            and names are found.
        **arch_overrides: keys of ``arch`` that have another value than in the named variant.

    Attributes:
        feature_info: a tuple, for each returned map its ``channels`` and ``stride``.
        out_channels, strides: the same, in a tuple of their own each.

    Raises:
        TypeError: for a keyword that is no key of ``arch``.
        ValueError: for an argument that names no variant, no map, no rate or no number of channels; when called, for images
            that are not ``(B, in_channels, H, W)``.
    """

    arch_zoo: dict[str, dict] = {}
    arch_rules: dict[str, tuple[str, Callable[[object], bool]]] = {}  # key -> what its value must be, and whether it is
    published: Published | None = None
    min_traced_size = 35  # of images in traces for any size: with smaller ones, a last map may have one row or column
    init_cfg: Any

    def __init__(self, arch: str | Mapping, in_channels: int, out_indices: int | Sequence[int] | None, frozen_stages: int,
                 drop_path_rate: float, with_cp: bool, init_cfg: dict | list[dict] | None, **arch_overrides: Any):
        super().__init__(init_cfg)
        self.arch = self._resolve(arch, arch_overrides)
        maps = self.describe_maps()
        chosen = range(len(maps)) if out_indices is None else len(maps) - 1 if out_indices == -1 else out_indices
        self.out_indices: tuple[int, ...] = tuple(chosen) if is_sequence(chosen) else (cast(int, chosen), )
        named = [index for index in range(len(maps)) if index in self.out_indices]
        if not named or list(self.out_indices) != named:
            raise ValueError(f'out_indices must be among {", ".join(map(str, range(len(maps))))}, ascending, '
                             f'got {out_indices!r}')
        last = max(layer.stage for layer in self.layer_order())
        if frozen_stages not in range(-1, last + 1):
            raise ValueError(f'frozen_stages must be from -1 (none) to {last} (all), got {frozen_stages!r}')
        if not is_rate(drop_path_rate):
            raise ValueError(f'drop_path_rate must lie in [0, 1), got {drop_path_rate!r}')
        if not is_positive(in_channels):
            raise ValueError(f'in_channels must be a positive whole number, got {in_channels!r}')
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.drop_path_rate = drop_path_rate
        self.with_cp = with_cp
        self.feature_info = tuple(maps[index] for index in self.out_indices)
        self.out_channels = tuple(info.channels for info in self.feature_info)
        self.strides = tuple(info.stride for info in self.feature_info)

    def _resolve(self, arch: str | Mapping, overrides: Mapping) -> dict:
        name, keys = type(self).__name__, list(next(iter(self.arch_zoo.values())))
        unknown = [key for key in overrides if key not in keys]
        if unknown:
            raise TypeError(f"{name}.__init__() got an unexpected keyword argument '{unknown[0]}'; beside its own arguments "
                            f'it takes the keys of an arch: {", ".join(sorted(keys))}')
        if isinstance(arch, str):
            if arch not in self.arch_zoo:
                raise ValueError(f'{name} has no arch {arch!r}; it has {", ".join(self.arch_zoo)}, '
                                 f'or takes a dict of {", ".join(sorted(keys))}')
            arch = self.arch_zoo[arch]
        elif not isinstance(arch, Mapping) or set(arch) != set(keys):
            found = sorted(map(str, arch)) if isinstance(arch, Mapping) else repr(arch)
            raise ValueError(f'the arch dict of {name} must have exactly the keys {sorted(keys)}, got {found}')
        arch = {**arch, **overrides}
        for key, value in arch.items():
            description, holds = self.get_arch_rule(key)
            if not holds(value):
                raise ValueError(f'arch[{key!r}] of {name} must be {description}, got {value!r}')
        return arch

    def get_arch_rule(self, key: str) -> tuple[str, Callable[[object], bool]]:
        """What the value of a key of ``arch`` must be, in words and as a test: one positive whole number, unless
        ``arch_rules`` has the key."""
        return self.arch_rules.get(key, ('a positive whole number', is_positive))

    def find_variant(self) -> str | None:
        """The published variant that has the same widths and depths, if there is one: its weights fit, or can be resized.

        Of several, that with most other keys alike.
        """
        def values(arch: Mapping, keys: Iterable[str]) -> list:
            return [list(value) if is_sequence(value) else value for value in map(arch.get, keys)]

        def count_alike(name: str) -> int:
            return sum(map(eq, values(self.arch_zoo[name], self.arch), values(self.arch, self.arch)))

        size = 'embed_dims', 'depths', 'depth'
        same = [name for name, arch in self.arch_zoo.items() if values(arch, size) == values(self.arch, size)]
        return max(same, key=count_alike, default=None)

    def describe_maps(self) -> Sequence[FeatureInfo]:
        """All maps that ``out_indices`` can name, by ``self.arch`` alone: nothing else is there yet."""
        raise NotImplementedError

    def layer_order(self) -> list[Layer]:
        """All parts of the whole backbone, built or not, in the order in which they compute, from the stem on.

        By ``self.arch`` alone: nothing else is there yet. A parameter belongs to the part with the longest prefix of its
        name. Depths for layer-wise learning rate decay, freezing, the units of FSDP and what a checkpoint must hold follow
        from this.
        """
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)`` -> for each of ``out_indices`` a contiguous ``(B, C, H', W')``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)``, any H, W >= 1 -> for each of ``out_indices`` the contiguous ``(B, C, H', W')``, as a
        rule with ``ceil(H / stride)`` rows and ``ceil(W / stride)`` columns."""
        self.check_images(x)
        return self.forward_features(x)

    def check_images(self, x: Tensor) -> None:
        """Refuse, with a ``ValueError``, what is no ``(B, in_channels, H, W)``."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'{type(self).__name__} takes images of shape (B, {self.in_channels}, H, W), '
                             f'got {tuple(x.shape)}')

    def _index_layers(self) -> dict[str, tuple[Layer, int]]:
        index, depth = {}, 0
        for layer in self.layer_order():
            depth += layer.is_block
            index.update(dict.fromkeys(layer.prefixes, (layer, depth)))
        return index

    def find_blocks(self) -> list[nn.Module]:
        """The blocks that are built."""
        blocks = {prefix for prefix, (layer, _) in self._index_layers().items() if layer.is_block}
        return [module for name, module in self.named_modules() if name in blocks]

    def claim(self, names: Iterable[str]) -> list[str]:
        """Those of a checkpoint's names that must be of this backbone: not of heads, nor of parts that are not built."""
        layers = self._index_layers()
        roots = {prefix.partition('.')[0] for prefix in layers}
        missing = layers.keys() - {name for name, _ in self.named_modules()} - self.state_dict().keys()
        return [name for name in names if name.partition('.')[0] in roots and _find_prefix(layers, name) not in missing]

    def freeze(self) -> None:
        """Take the frozen parameters out of training."""
        if self.frozen_stages < 0:
            return
        layers = self._index_layers()

        def is_frozen(name: str) -> bool:
            prefix = _find_prefix(layers, name)
            return prefix is not None and layers[prefix][0].stage <= self.frozen_stages

        for name, module in self.named_modules():
            if is_frozen(name):
                module.training = False
        for name, parameter in self.named_parameters():
            if is_frozen(name):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> 'Backbone':
        """As in torch, but frozen modules stay in eval mode."""
        super().train(mode)
        self.freeze()
        return self

    def init_weights(self) -> None:
        """Draw the published random initialisation, then apply ``init_cfg``.

        Raises:
            CheckpointError: if a ``Pretrained`` checkpoint cannot be read or does not fit.
        """
        if self._is_init:
            super().init_weights()  # which warns
            return
        pretrained = [self._read_pretrained(cfg) for cfg in self._list_init_cfg(pretrained=True)]
        self.init_random_weights()
        # mmengine's own loading knows neither published names nor their wrappers, and takes what fits in silence.
        init_cfg = self.init_cfg
        self.init_cfg = self._list_init_cfg(pretrained=False)
        super().init_weights()
        self.init_cfg = init_cfg
        for weights, line in pretrained:
            self.load_state_dict(weights, strict=False)
            print_log(line, 'current')
            if hasattr(self, '_params_init_info'):
                update_init_info(self, line)

    def check_pretrained(self) -> None:
        """Make sure that a ``Pretrained`` checkpoint of ``init_cfg`` holds every parameter.

        Raises:
            CheckpointError: if it cannot be read or does not fit.
        """
        for cfg in self._list_init_cfg(pretrained=True):
            self._read_pretrained(cfg)

    def _read_pretrained(self, init_cfg: Mapping) -> tuple[dict[str, Tensor], str]:
        """Every parameter in a checkpoint, published or of a training here; and a line that says what was found."""
        path = init_cfg['checkpoint']
        name = type(self).__name__
        try:
            found, words = recognise(load_file(path), self.state_dict().keys(), self.published, init_cfg.get('prefix'))
        except CheckpointError as error:
            message = str(error) if path in str(error) else f'checkpoint {path} does not fit {name}: {error}'
            raise CheckpointError(f'{message}; {self._advise()}') from error
        weights = {key: found[key] for key in self.claim(found)}
        fit = match(self, weights)
        if not fit.complete:
            raise CheckpointError(f'checkpoint {path} gives {fit.matched} of the {fit.total} parameters of {name}: '
                                  f'{fit.problems()}; is it of another arch? {self._advise()}')
        new = f', and {len(fit.added)} tensors that such a checkpoint lacks ({self._name_added(fit.added)}) start anew'
        return weights, (f'{path} gives the parameters of {name}: {words}; {len(fit.resampled)} tensors are resized'
                         + (new if fit.added else ''))

    def _name_added(self, names: list[str]) -> str:
        """The parts of the backbone that have them, in words."""
        prefixes = [prefix for layer in self.layer_order() if layer.is_added for prefix in layer.prefixes]
        kinds = [re.sub(r'\.\d+', '', prefix).rpartition('.')[2] for prefix in prefixes
                 if any(name.startswith(f'{prefix}.') for name in names)]
        return ', '.join(f'{count} {kind}' for kind, count in Counter(kinds).items())

    def _list_init_cfg(self, pretrained: bool) -> list[dict]:
        """The parts of ``init_cfg`` that name a checkpoint, or those that do not."""
        cfgs = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
        return [cfg for cfg in cfgs if (cfg['type'] in ('Pretrained', PretrainedInit)) == pretrained]

    def _advise(self) -> str:
        """Where to get weights that fit, or how to do without."""
        advice = ('a checkpoint of an ImageNet config will do as well; to start from random weights instead: '
                  '--cfg-options model.backbone.init_cfg=None')
        variant = self.find_variant()
        if self.published is None:
            return advice
        if variant not in self.published.released:
            return (f'no weights of {variant or "this arch"} were published ({self.published.url} has '
                    f'{", ".join(self.published.released) or "none"}); {advice}')
        return f'published weights: {self.published.url}, which are loaded as they are; {advice}'

    def init_random_weights(self) -> None:
        """Draw the published random initialisation of every parameter.

        Here it is Swin's, which most of the papers took over: linear layers from a normal distribution with a deviation of
        0.02, cut at 2, and biases of zero; all else as torch and the layers themselves have it.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_init(module, std=0.02)
            elif hasattr(module, 'reset_parameters'):
                module.reset_parameters()

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The depth of a parameter, for layer-wise learning rate decay, and the number of depths.

        What computes before the first block has depth 0, blocks count from 1, what lies between two counts with the one
        before, and what does not begin with ``prefix`` (heads) comes last.

        Raises:
            ValueError: for a parameter of the backbone that ``layer_order`` has no part for.
        """
        layers = self._index_layers()
        num_layers = max(depth for _, depth in layers.values()) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        found = _find_prefix(layers, param_name[len(prefix):])
        if found is None:
            raise ValueError(f'{param_name} belongs to no part in the layer_order() of {type(self).__name__}')
        return layers[found][1], num_layers

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters of norms and of relative position biases, for fine-tuning with layer-wise learning rate
        decay, as Swin's recipe has it. (The papers' own recipes differ in this; the configs follow those.)"""
        return {f'{prefix}.{name}' for prefix, module in self.named_modules()
                if isinstance(module, (nn.LayerNorm, nn.GroupNorm, RelativePositionBias)) or hasattr(module, 'running_mean')
                for name, _ in module.named_parameters(recurse=False)}


def _find_prefix(prefixes: Container[str], name: str) -> str | None:
    """The longest prefix that is the name or a dotted beginning of it."""
    while name not in prefixes and '.' in name:
        name = name.rpartition('.')[0]
    return name if name in prefixes else None
