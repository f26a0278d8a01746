"""The contract that every backbone keeps."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, islice
from numbers import Integral, Real
from operator import mul
from typing import Any, NamedTuple, TypeGuard, TypeVar, cast

import numpy as np
from mmengine.model import BaseModule, trunc_normal_init
from torch import Tensor, nn

from ..checkpoints import check_pretrained
from ..layers import RelativePositionBias

NUM_STAGES = 4
T = TypeVar('T')


def is_positive(value: object) -> bool:
    """Whether an argument is a positive whole number."""
    return isinstance(value, Integral) and int(value) >= 1


def is_rate(value: object) -> bool:
    """Whether an argument is a number in [0, 1)."""
    return isinstance(value, Real) and 0 <= float(value) < 1


def is_sequence(value: object) -> TypeGuard[Sequence]:
    """Whether an argument is a list or the like, not a text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


class Layer(NamedTuple):
    """A part of a backbone, as ``layer_order`` lists them."""
    prefix: str | tuple[str, ...]  # of the names of its modules and parameters; several if they compute side by side
    stage: int  # it is frozen with so many stages: 0 is the stem
    is_block: bool = False  # blocks are what depths count, and the units of FSDP
    is_added: bool = False  # dense prediction's own, so that a classifier's checkpoint may be without it


class PyramidBackbone(BaseModule):
    """Four stages of falling resolution; the maps named by ``out_indices`` are returned.

    A subclass sets ``arch_zoo``; in ``arch_rules`` what its keys take that are not one positive whole number for each stage;
    and, in its ``__init__``, ``self.stages``: a ``Stage`` for each of the first ``self.num_built`` stages. It ends its
    ``__init__`` with ``self.freeze()``. One whose parameters are not all in ``stages`` has a ``layer_order`` of its own.

    Args:
        arch: a published variant's name, or a dict of the same keys as the values of ``arch_zoo``.
        patch_sizes: by how much each stage divides height and width, rounding up.
        in_channels: channels of the input image.
        out_indices: the stages, from 0, whose maps are returned, ascending. Later stages are not built.
        frozen_stages: -1 freezes nothing, 0 the first patch embedding, n >= 1 the first n stages. Frozen modules have
            no gradient and stay in eval mode.
        drop_path_rate: drop path rate of the last block; the rate grows linearly from 0 at the first.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        init_cfg: as in mmengine. A ``Pretrained`` checkpoint must hold every parameter of the backbone, in its shape, but
            norms that classifiers lack (``adds_norms``); tables of positions are resampled from other sizes. The
            ``backbone.`` prefix of a detector's, segmentor's or classifier's checkpoint is found without being told.

    Attributes:
        out_channels, strides: tuples, one entry for each returned map.
        stage_strides: a tuple, one entry for each of the four stages.

    Raises:
        ValueError: for an argument that names no variant, no stage, no rate or no number of channels; when called, for images
            that are not ``(B, in_channels, H, W)``.
    """

    arch_zoo: dict[str, dict] = {}
    arch_rules: dict[str, tuple[str, Callable[[object], bool]]] = {}  # key -> what its value must be, and whether it is
    adds_norms = False  # to the returned maps, which classifiers lack, so that those of a stage may be missing in a checkpoint
    stages: Any  # an nn.ModuleList of Stage, which torch's types cannot say

    def __init__(self, arch: str | Mapping, patch_sizes: Sequence[int], in_channels: int, out_indices: Sequence[int],
                 frozen_stages: int, drop_path_rate: float, with_cp: bool, init_cfg: dict | list[dict] | None):
        super().__init__(init_cfg)
        self.arch = self._resolve(arch)
        self.out_indices: tuple[int, ...] = tuple(out_indices) if is_sequence(out_indices) else (cast(int, out_indices), )
        named = [index for index in range(NUM_STAGES) if index in self.out_indices]
        if not named or list(self.out_indices) != named:
            raise ValueError(f'out_indices must name stages among 0, 1, 2, 3, ascending, got {out_indices!r}')
        if frozen_stages not in range(-1, NUM_STAGES + 1):
            raise ValueError(f'frozen_stages must be from -1 (none) to {NUM_STAGES} (all), got {frozen_stages!r}')
        if not is_rate(drop_path_rate):
            raise ValueError(f'drop_path_rate must lie in [0, 1), got {drop_path_rate!r}')
        if not is_positive(in_channels):
            raise ValueError(f'in_channels must be a positive whole number, got {in_channels!r}')
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.num_built = self.out_indices[-1] + 1
        self.out_channels = tuple(self.arch['embed_dims'][i] for i in self.out_indices)
        self.stage_strides = tuple(accumulate(patch_sizes, mul))
        self.strides = tuple(self.stage_strides[i] for i in self.out_indices)
        self.depths = tuple(self.arch['depths'])
        # Over all four stages, built or not, so that a backbone cut short is the beginning of the whole one.
        rates = iter(np.linspace(0, drop_path_rate, sum(self.depths)).tolist())
        self.drop_path_rates = [list(islice(rates, depth)) for depth in self.depths]

    def _resolve(self, arch: str | Mapping) -> dict:
        name, keys = type(self).__name__, set(next(iter(self.arch_zoo.values())))
        if isinstance(arch, str):
            if arch not in self.arch_zoo:
                raise ValueError(f'{name} has no arch {arch!r}; it has {", ".join(self.arch_zoo)}, '
                                 f'or takes a dict of {", ".join(sorted(keys))}')
            return dict(self.arch_zoo[arch])
        if not isinstance(arch, Mapping) or set(arch) != keys:
            found = sorted(map(str, arch)) if isinstance(arch, Mapping) else repr(arch)
            raise ValueError(f'the arch dict of {name} must have exactly the keys {sorted(keys)}, got {found}')
        for key, values in arch.items():
            if key in self.arch_rules:
                description, holds = self.arch_rules[key]
                if not holds(values):
                    raise ValueError(f'arch[{key!r}] of {name} must be {description}, got {values!r}')
            elif not is_sequence(values) or len(values) != NUM_STAGES or not all(is_positive(value) for value in values):
                raise ValueError(f'arch[{key!r}] of {name} must be {NUM_STAGES} positive whole numbers, one for each '
                                 f'stage, got {values}')
        for dims, heads in zip(arch['embed_dims'], arch.get('num_heads', (1, ) * NUM_STAGES)):
            if dims % heads:
                raise ValueError(f'each of embed_dims must be a multiple of its num_heads, got {dims} and {heads}')
        return dict(arch)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)``, any H, W >= 1 -> for each of ``out_indices`` the contiguous
        ``(B, C, ceil(H / stride), ceil(W / stride))``."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'{type(self).__name__} takes images of shape (B, {self.in_channels}, H, W), '
                             f'got {tuple(x.shape)}')
        outs = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                outs.append(stage.get_map(x).contiguous())
        return tuple(outs)

    def layer_order(self) -> list[Layer]:
        """All parts of the whole backbone, built or not, in the order in which they compute, from the stem on.

        A parameter belongs to the part with the longest prefix of its name. Depths for layer-wise learning rate decay,
        freezing, the units of FSDP and what a checkpoint must hold follow from this.
        """
        order = [Layer('stages.0.patch_embed', 0)]
        for index, depth in enumerate(self.depths):
            order += [Layer(f'stages.{index}', index + 1)]  # what is neither block nor norm comes before the blocks
            order += [Layer(f'stages.{index}.blocks.{block}', index + 1, is_block=True) for block in range(depth)]
            order += [Layer(f'stages.{index}.norm', index + 1, is_added=self.adds_norms)]
        return order

    def _index_layers(self) -> dict[str, tuple[Layer, int]]:
        index, depth = {}, 0
        for layer in self.layer_order():
            depth += layer.is_block
            index.update(dict.fromkeys([layer.prefix] if isinstance(layer.prefix, str) else layer.prefix, (layer, depth)))
        return index

    def find_blocks(self) -> list[nn.Module]:
        """The blocks that are built, in the order of ``layer_order``."""
        blocks = {prefix for prefix, (layer, _) in self._index_layers().items() if layer.is_block}
        return [module for name, module in self.named_modules() if name in blocks]

    def claim(self, names: Iterable[str]) -> list[str]:
        """Those of a checkpoint's names that must be of this backbone: not of heads, nor of parts that are not built."""
        layers = self._index_layers()
        roots = {prefix.partition('.')[0] for prefix in layers}
        built = {_find(layers, name) for name in self.state_dict()}
        return [name for name in names
                if name.partition('.')[0] in roots and _find(layers, name) in built | {None}]

    def freeze(self) -> None:
        """Take the frozen parameters out of training."""
        if self.frozen_stages < 0:
            return
        frozen = {prefix: layer.stage <= self.frozen_stages for prefix, (layer, _) in self._index_layers().items()}
        for name, module in self.named_modules():
            if _find(frozen, name):
                module.training = False
        for name, parameter in self.named_parameters():
            if _find(frozen, name):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> 'PyramidBackbone':
        """As in torch, but frozen modules stay in eval mode."""
        super().train(mode)
        self.freeze()
        return self

    def init_weights(self) -> None:
        """Draw the published random initialisation, then apply ``init_cfg``.

        Raises:
            CheckpointError: if a ``Pretrained`` checkpoint cannot be read or does not fit.
        """
        if not self._is_init:
            self.init_random_weights()
            self.check_pretrained()
        super().init_weights()

    def check_pretrained(self) -> None:
        """Make sure that a ``Pretrained`` checkpoint of ``init_cfg`` holds every parameter, and find its prefix.

        Raises:
            CheckpointError: if it cannot be read or does not fit.
        """
        for cfg in [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []:
            if cfg['type'] == 'Pretrained':
                cfg['prefix'] = check_pretrained(self, cfg['checkpoint'], cfg.get('prefix'))

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
        found = _find(layers, param_name[len(prefix):])
        if found is None:
            raise ValueError(f'{param_name} belongs to no part in the layer_order() of {type(self).__name__}')
        return found[1], num_layers

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters of norms and of relative position biases, for fine-tuning with layer-wise learning rate
        decay, as Swin's recipe has it. (The papers' own recipes differ in this; the configs follow those.)"""
        return {f'{prefix}.{name}' for prefix, module in self.named_modules()
                if isinstance(module, (nn.LayerNorm, RelativePositionBias)) or hasattr(module, 'running_mean')
                for name, _ in module.named_parameters(recurse=False)}


def _find(parts: Mapping[str, T], name: str) -> T | None:
    """The value of the longest key that is ``name`` or a dotted beginning of it."""
    while name not in parts and '.' in name:
        name = name.rpartition('.')[0]
    return parts.get(name)
