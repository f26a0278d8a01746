"""Published checkpoints: what a backbone's file says of its paper's, and their conversion to our names."""
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS
from torch import Tensor

from ..errors import CheckpointError
from .files import strip_module, strip_prefix, unwrap
from .matching import Match, match


class Published(NamedTuple):
    """The weights of a paper, and how their names become ours; ``published`` of a backbone's class."""
    url: str
    licence: str
    released: tuple[str, ...]  # the variants that have published weights
    rename: tuple[tuple[str, str | Callable[[re.Match], str]], ...]  # (pattern, replacement) of re.sub, applied in order
    drop: str  # pattern of names that belong to no backbone
    finish: Callable[[dict[str, Tensor]], None] = lambda converted: None  # changes, in place, what is more than names
    classifiers: tuple[str, ...] = ()  # variants that classify as our ImageNet configs do: the mean of the last map, ``head``
    head: tuple[tuple[str, str], ...] = (('head', 'head.fc'), )  # its layers with weight and bias, published and in our configs
    pooling: tuple[tuple[str, str], ...] = ()  # other tensors of the classifier, likewise
    auxiliary: tuple[tuple[str, str], ...] = ()  # layers of heads that only some variants have

    def convert(self, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published names, without prefix -> ours, to the same tensors."""
        converted = {}
        for name, tensor in names.items():
            if re.search(self.drop, name):
                continue
            for pattern, replacement in self.rename:
                name = re.sub(pattern, replacement, name)
            converted[name] = tensor
        self.finish(converted)
        return converted


def stage_before(match: re.Match) -> str:
    """For ``rename``: the stage from 0, of names with a part and a stage that counts from 1."""
    return f'stages.{int(match[2]) - 1}.{match[1]}.'


def find_systems() -> dict[str, Any]:
    """The registered backbones with published weights, by their names in small letters."""
    return {name.lower(): kind for name, kind in MODELS.module_dict.items()
            if isinstance(kind, type) and vars(kind).get('published')}


def convert_state_dict(system: str, state_dict: Mapping) -> dict[str, Tensor]:
    """Rename the parameters of a published checkpoint to those of our backbone.

    Args:
        system: the name of the backbone in small letters.
        state_dict: names to tensors, or a checkpoint that holds them under ``model``, ``state_dict`` or their ``_ema``
            forms, with or without ``module.`` and ``backbone.`` before the names. The layouts of classification (whose
            ``head`` is dropped) and of dense prediction (whose neck and heads are dropped) are both understood.

    Returns:
        Our parameter names without prefix -> the same tensors.

    Raises:
        ValueError: for a system that is not known, or a checkpoint in which no name is that system's.
    """
    systems = find_systems()
    if system not in systems:
        raise ValueError(f'no system is called {system!r}; known: {", ".join(systems)}')
    backbone, published = systems[system], strip_prefix(unwrap(state_dict))
    converted = backbone.published.convert(published)
    with torch.device('meta'):
        known = backbone(next(iter(backbone.arch_zoo))).claim(converted)
    if not known:
        raise ValueError(f'no name among the {len(published)} in this state dict is one of the published {system}; '
                         f'it begins with {list(published)[:3]}; is it a file of {backbone.published.url}? What mmsimvit '
                         'trained needs no conversion')
    return converted


def convert_head(system: str, arch: str, state_dict: Mapping) -> dict[str, Tensor]:
    """The classifier's head of a published checkpoint, as the ``ImageClassifier`` of our ImageNet configs names it.

    Args:
        system, state_dict: as ``convert_state_dict`` takes them.
        arch: the variant.

    Raises:
        CheckpointError: if the checkpoint has none, or one that our config of this variant has not.
    """
    published = find_systems()[system].published
    if arch not in published.classifiers:
        raise CheckpointError(f'the published classifier of {system} {arch} is another than in our ImageNet config, and its '
                              f'head would give other scores; it is the same for: {", ".join(published.classifiers) or "none"}')
    names = strip_module(unwrap(state_dict))
    names |= strip_prefix(names)  # heads may stand beside the backbone, or without a prefix like it
    ours = {f'{theirs}.{kind}': f'{layer}.{kind}' for theirs, layer in published.head for kind in ('weight', 'bias')}
    ours |= dict(published.pooling)
    ours |= {f'{theirs}.{kind}': f'{layer}.{kind}' for theirs, layer in published.auxiliary for kind in ('weight', 'bias')
             if f'{theirs}.{kind}' in names}
    if not ours.keys() <= names.keys():
        raise CheckpointError(f'it has no {" and ".join(ours)}: it is of no classifier')
    return {layer: names[theirs] for theirs, layer in ours.items()}


def find_arch(system: str, state_dict: Mapping[str, Tensor]) -> tuple[str, Match]:
    """The published variant that a converted state dict fits best, and how it fits."""
    backbone = find_systems()[system]
    with torch.device('meta'):
        matches = {arch: match(backbone(arch), state_dict) for arch in backbone.arch_zoo}
    return min(matches.items(), key=lambda item: (len(item[1].missing) + len(item[1].reshaped) + len(item[1].unused),
                                                  len(item[1].resampled)))
