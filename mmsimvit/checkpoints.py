"""Checkpoints: published parameter names -> ours, and how much of a checkpoint a backbone can use."""
import difflib
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

if TYPE_CHECKING:
    from .backbones import Backbone

# Where training tools put the weights; averaged weights are what published accuracies were measured with.
WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message names the file and what to do."""


class System(NamedTuple):
    """What the converter knows of one published system."""
    backbone: str  # our registered name
    source: str  # where the weights were published
    released: tuple[str, ...]  # the variants that have published weights
    rules: tuple[tuple[str, str | Callable], ...]  # (pattern, replacement) of re.sub, applied in order
    dropped: str  # pattern of names that belong to no backbone
    finish: Callable[[dict], None] = lambda converted: None  # changes, in place, what is more than names


def stage_before(match: re.Match) -> str:
    """Published stages that count from 1."""
    return f'stages.{int(match[2]) - 1}.{match[1]}.'


def shape_lit_positions(converted: dict[str, Tensor]) -> None:
    """LIT-Ti: embeddings as maps, without that of the class token; its maps have no norms, the classifier's is not theirs."""
    embeddings = [name for name in converted if name.endswith('.embedding')]
    for name in embeddings:
        rows = converted[name]
        if isinstance(rows, Tensor) and rows.dim() == 3:
            size = isqrt(rows.shape[1])
            converted[name] = rows[:, rows.shape[1] - size**2:].transpose(1, 2).unflatten(2, (size, size)).contiguous()
    if embeddings:
        for name in ('stages.3.norm.weight', 'stages.3.norm.bias'):
            converted.pop(name, None)


SYSTEMS = {
    'simvit':
    System(
        backbone='SimViT',
        source='https://github.com/ucasligang/SimViT',
        released=('micro', 'tiny', 'small'),
        rules=(
            (r'^(patch_embed|block|norm)([1-4])\.', stage_before),
            (r'^(stages\.\d)\.block\.', r'\1.blocks.'),
            (r'\.attn\.(q|kv)_proj\.', r'.attn.\1.'),
            (r'\.mlp\.', '.ffn.'),
            (r'\.dwconv\.dwconv\.', '.dwconv.'),
        ),
        dropped=r'^head\.',
    ),
    'lit':
    System(
        backbone='LIT',
        source='https://github.com/ziplab/LIT',
        released=('ti', 's', 'm', 'b'),
        rules=(
            # ti
            (r'^(patch_embed|block|pos_embed)([1-4])(?:\.|$)', stage_before),
            (r'^(stages\.\d)\.block\.', r'\1.blocks.'),
            (r'^(stages\.\d)\.patch_embed\.', r'\1.patch_embed.0.'),
            (r'^(stages\.\d)\.pos_embed\.', r'\1.patch_embed.1.embedding'),
            # s, m, b
            (r'^patch_embed\.', 'stages.0.patch_embed.'),
            (r'^layers\.(\d)\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.'),
            (r'^layers\.', 'stages.'),
            (r'^norm([1-3])\.', r'stages.\1.norm.'),
            (r'^norm\.', 'stages.3.norm.'),  # of classifiers: in its place, where published detectors have a new one
            (r'\.relative_position_bias_table$', '.position_bias.table'),
            # both
            (r'\.dconv\.conv_offset\.', '.offset.'),
            (r'\.dconv\.', '.conv.'),
            (r'\.norm_layer\.', '.norm.'),
            (r'\.mlp\.', '.ffn.'),
        ),
        dropped=r'^head\.|^cls_token$|\.relative_position_index$',
        finish=shape_lit_positions,
    ),
    'gcvit':
    System(
        backbone='GCViT',
        source='https://github.com/NVlabs/GCVit',
        released=('xxtiny', 'xtiny', 'tiny', 'tiny2', 'small', 'small2', 'base', 'large'),
        rules=(
            (r'^patch_embed\.conv_down\.', 'stages.0.patch_embed.downsample.'),
            (r'^patch_embed\.', 'stages.0.patch_embed.'),
            (r'^levels\.(\d)\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.'),
            (r'^levels\.', 'stages.'),
            (r'^norm([0-3])\.', r'stages.\1.norm.'),
            (r'^norm\.', 'stages.3.norm.'),  # of classifiers: in its place, where published detectors have a new one
            (r'\.q_global_gen\.to_q_global\.(\d)\.conv\.', r'.global_query.mbconvs.\1.'),
            (r'(\.patch_embed(?:\.downsample)?)\.conv\.', r'\1.mbconv.'),
            (r'(\.mbconvs\.\d|\.mbconv)\.0\.', r'\1.dwconv.'),
            (r'(\.mbconvs\.\d|\.mbconv)\.2\.fc\.0\.', r'\1.se.fc1.'),
            (r'(\.mbconvs\.\d|\.mbconv)\.2\.fc\.2\.', r'\1.se.fc2.'),
            (r'(\.mbconvs\.\d|\.mbconv)\.3\.', r'\1.proj.'),
            (r'(\.blocks\.\d*[13579]\.attn)\.qkv\.', r'\1.kv.'),  # every second block has no queries of its own
            (r'\.relative_position_bias_table$', '.position_bias.table'),
            (r'\.gamma([12])$', r'.scale\1.gamma'),
            (r'\.mlp\.', '.ffn.'),
        ),
        dropped=r'^head\.|\.relative_position_index$',
    ),
    'dwnet':
    System(
        backbone='DWNet',
        source='https://github.com/Atten4Vis/DemystifyLocalViT',
        released=('t', 'b', 'dynamic_t', 'dynamic_b'),
        rules=(
            (r'^patch_embed\.', 'stages.0.patch_embed.'),
            (r'^layers\.(\d)\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.patch_embed.'),
            (r'^layers\.', 'stages.'),
            (r'^norm([0-3])\.', r'stages.\1.norm.'),
            # Published numbers are from 0; the depth-wise convolution in the middle has none.
            (r'\.attn2conv\.conv2\.', '.conv.conv2.'),
            (r'\.attn2conv\.bn2\.', '.conv.bn3.'),
            (r'\.attn2conv\.bn\.', '.conv.bn2.'),
            (r'\.attn2conv\.bn0\.', '.conv.bn1.'),
            (r'\.attn2conv\.conv0\.', '.conv.conv1.'),
            (r'\.attn2conv\.conv\.', '.conv.dwconv.'),
            (r'\.dwconv\.conv1\.0\.', '.dwconv.conv1.'),  # inhomogeneous
            (r'\.dwconv\.conv1\.1\.', '.dwconv.bn.'),
            (r'\.dwconv\.conv2\.0\.', '.dwconv.conv2.'),
            (r'\.mlp\.', '.ffn.'),
        ),
        dropped=r'^head\.|^norm\.',  # the classifier's layer norm, where detectors have batch norms
    ),
}


def convert_state_dict(system: str, state_dict: Mapping) -> dict[str, Tensor]:
    """Rename the parameters of a published checkpoint to those of our backbone.

    Args:
        system: the published system, a key of ``SYSTEMS``.
        state_dict: names to tensors, or a checkpoint that holds them under ``model``, ``state_dict`` or their ``_ema``
            forms, with or without ``module.`` and ``backbone.`` before the names. The layouts of classification (whose
            ``head`` is dropped) and of dense prediction (whose neck and heads are dropped) are both understood.

    Returns:
        Our parameter names without prefix -> the same tensors.

    Raises:
        ValueError: for a system that is not known, or a checkpoint in which no name is that system's.
    """
    if system not in SYSTEMS:
        raise ValueError(f'no system is called {system!r}; known: {", ".join(SYSTEMS)}')
    published = strip_prefix(unwrap(state_dict))
    converted = {}
    for name, tensor in published.items():
        if re.search(SYSTEMS[system].dropped, name):
            continue
        for pattern, replacement in SYSTEMS[system].rules:
            name = re.sub(pattern, replacement, name)
        converted[name] = tensor
    SYSTEMS[system].finish(converted)
    if not any(name.startswith('stages.') for name in converted):
        raise ValueError(f'no name among the {len(published)} in this state dict is one of the published {system}; '
                         f'it begins with {list(published)[:3]}; is it a file of {SYSTEMS[system].source}? What mmsimvit '
                         'trained needs no conversion')
    return converted


def unwrap(checkpoint: Mapping) -> Mapping:
    """The innermost mapping of names to tensors.

    Raises:
        ValueError: for what is no mapping.
    """
    while isinstance(checkpoint, Mapping):
        inner = next((checkpoint[key] for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)), None)
        if inner is None:
            return checkpoint
        checkpoint = inner
    raise ValueError(f'a checkpoint must be a mapping of names to tensors, got {type(checkpoint).__name__}')


def as_mmengine_reads(checkpoint: Mapping) -> Mapping:
    """The names and tensors that mmengine's loading will look at, which knows one wrapper only."""
    return checkpoint.get('state_dict', checkpoint)


def strip_module(state_dict: Mapping) -> dict:
    """Names without the ``module.`` that data-parallel wrappers put before them."""
    return {name.removeprefix('module.'): value for name, value in state_dict.items()}


def strip_prefix(state_dict: Mapping) -> dict:
    """Names without ``module.``; if any begins with ``backbone.``, only those, without it."""
    names = strip_module(state_dict)
    inside = {name.removeprefix('backbone.'): value for name, value in names.items() if name.startswith('backbone.')}
    return inside or names


def load_file(path: str) -> Mapping:
    """Read a checkpoint that may come from a stranger: tensors and plain containers only, no code is run.

    Raises:
        CheckpointError: if it is missing, broken or holds anything else.
    """
    try:
        if '://' in path:
            with _only_weights():
                checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
        else:
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        others = sorted(other.name for other in Path(path).parent.glob('[!.]*.pth'))  # those with a dot are not whole
        beside = difflib.get_close_matches(Path(path).name, others)
        raise CheckpointError(f'checkpoint {path} does not exist'
                              + (f'; near to it: {", ".join(beside)}' if beside else '')) from None
    except pickle.UnpicklingError as error:
        found = re.search(r'(?:GLOBAL|class|Unsupported \w+) ([A-Za-z_][\w.]*)', str(error))
        raise CheckpointError(f'checkpoint {path} is refused: it holds more than tensors'
                              f'{f" ({found[1]})" if found else ""} and could run code when loaded, or it is no '
                              'checkpoint at all; ask whoever made it for the state dict alone') from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f'checkpoint {path} cannot be read; it may have been cut short, or be no checkpoint of PyTorch '
                              f'({type(error).__name__}: {(str(error).splitlines() or [""])[0]})') from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f'checkpoint {path} holds a {type(checkpoint).__name__}, not names and tensors')
    return checkpoint


@contextmanager
def _only_weights() -> Iterator[None]:
    """torch.hub, which mmengine's downloads go through, asks for ``weights_only=False``; this overrules it."""
    name = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(name)
    os.environ[name] = '1'
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


class Match(NamedTuple):
    """How a state dict fits a backbone: numbers of parameters, and the names that do not fit."""
    total: int
    matched: int
    missing: list[str]
    reshaped: list[str]  # with both shapes
    unused: list[str]
    added: list[str]  # missing too, and rightly: norms of maps that classifiers lack
    resampled: list[str]  # tables of positions that had another size; they fit, but an optimizer's state does not fit them

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, of another shape or unused."""
        return not (self.missing or self.reshaped or self.unused)

    @property
    def predicts(self) -> bool:
        """Whether all that predictions take is there.

        An auxiliary head is for training, and published checkpoints are often without; so are counts of batches.
        """
        return not self.reshaped and all(name.startswith('auxiliary_head') or name.endswith('num_batches_tracked')
                                         for name in self.missing)

    def check_predictions(self, checkpoint: str, model: nn.Module) -> None:
        """Refuse a checkpoint with which predictions would be random in part.

        Args:
            checkpoint: its path, for the message.
            model: what it is for.

        Raises:
            CheckpointError: unless it ``predicts``.
        """
        if not self.predicts:
            raise CheckpointError(f'checkpoint {checkpoint} gives {self.matched} of the {self.total} parameters of '
                                  f'{type(model).__name__}; {self.problems()}; is it of this config? If the rest may be '
                                  'random, or is renamed or resized when it is loaded: --allow-partial')

    def problems(self) -> str:
        """One line that names at most three of each kind."""
        kinds = (('missing', self.missing), ('of another shape', self.reshaped), ('not used', self.unused))
        return '; '.join(f'{len(names)} {kind} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
                         for kind, names in kinds if names)


def match(backbone: nn.Module, state_dict: Mapping[str, Tensor]) -> Match:
    """Compare the names and shapes of a backbone with those of a state dict, after the resampling that loading does."""
    ours, given, state_dict = backbone.state_dict(), state_dict, dict(state_dict)
    for prefix, module in backbone.named_modules():
        if hasattr(module, 'fit_state_dict'):
            module.fit_state_dict(state_dict, prefix.replace('_fsdp_wrapped_module.', '') + '.')
    resampled = [name for name in ours if name in given and state_dict[name] is not given[name]
                 and state_dict[name].shape != given[name].shape]
    missing = [name for name in ours if name not in state_dict]
    added = []
    for layer in getattr(backbone, 'layer_order', list)():
        part = [name for name in ours if name.startswith(f'{layer.prefix}.')] if layer.is_added else []
        added += part if set(part) <= set(missing) else []  # in part, it was cut out of a detector's
    reshaped = [f'{name}: {tuple(state_dict[name].shape)} instead of {tuple(tensor.shape)}' for name, tensor in ours.items()
                if name in state_dict and state_dict[name].shape != tensor.shape]
    unused = [name for name in state_dict if name not in ours]
    return Match(len(ours), len(ours) - len(missing) - len(reshaped), [name for name in missing if name not in added],
                 reshaped, unused, added, resampled)


def find_arch(system: str, state_dict: Mapping[str, Tensor]) -> tuple[str, Match]:
    """The published variant that a converted state dict fits best, and how it fits."""
    backbone = MODELS.get(SYSTEMS[system].backbone)
    with torch.device('meta'):
        matches = {arch: match(backbone(arch), state_dict) for arch in backbone.arch_zoo}
    return min(matches.items(), key=lambda item: len(item[1].missing) + len(item[1].reshaped) + len(item[1].unused))


def check_pretrained(backbone: 'Backbone', path: str, prefix: str | None = None) -> str | None:
    """Make sure that a checkpoint holds every parameter of a backbone, before mmengine's lenient loading of it.

    Returns:
        The prefix of the backbone's names in the file.

    Raises:
        CheckpointError: if it does not; the message says how to convert a published checkpoint, or to do without.
    """
    backbone_name = type(backbone).__name__
    advice = ('a checkpoint of an ImageNet config will do as well; to start from random weights instead: '
              '--cfg-options model.backbone.init_cfg=None')
    arch = backbone.find_variant() or 'this arch'
    for system, known in SYSTEMS.items():
        if known.backbone == backbone_name and arch not in known.released:
            advice = f'no weights of {arch} were published ({known.source} has {", ".join(known.released)}); {advice}'
        elif known.backbone == backbone_name:
            file = Path(path)
            files = f'{file} {file.with_name(f"{file.stem}_converted.pth")}' if file.exists() else f'SRC {path}'
            advice = (f'published weights: {known.source}, converted with python -m mmsimvit convert_checkpoint {files} '
                      f'--system {system}; {advice}')
    try:
        checkpoint = load_file(path)
    except CheckpointError as error:
        raise CheckpointError(f'{error}; {advice}') from error
    state_dict = as_mmengine_reads(checkpoint)
    if prefix is None:
        prefix = next((known for known in ('module.backbone.', 'backbone.', 'module.')
                       if any(name.startswith(known) for name in state_dict)), None)
    elif not prefix.endswith('.'):
        prefix += '.'  # as mmengine does
    state_dict = {name.removeprefix(prefix or ''): value for name, value in state_dict.items()
                  if name.startswith(prefix or '')}
    found = match(backbone, {name: state_dict[name] for name in backbone.claim(state_dict)})
    if not found.complete:
        raise CheckpointError(f'checkpoint {path} gives {found.matched} of the {found.total} parameters of {backbone_name}: '
                              f'{found.problems()}; is it of another arch, or not converted? {advice}')
    if found.added:
        print_log(f'checkpoint {path} is of a classifier: the norms of returned maps, {len(found.added)} tensors, start anew',
                  'current')
    return prefix
