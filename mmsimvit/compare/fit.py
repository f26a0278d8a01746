"""A backbone in a model whose heads are given: its maps are looked for, and the heads are fitted to them."""
import copy
import inspect
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.registry import MODELS, DefaultScope

from ..backbones import Backbone
from ..dry_run import DryRun, dry_run
from ..errors import CheckpointError, ModelError
from ..fitting import Fitter, build
from ..swap import find_maps
from ..weights import load_file
from ..weights.matching import match_checkpoint

REFERENCE = dict(type='SimViT', arch='micro', drop_path_rate=0.)  # in whose place the backbones are put
WIDTHS = [32, 64, 160, 256]
# How stock backbones, which do not say what maps they have, are asked for all of them.
ASKED: tuple[dict, ...] = (
    {}, dict(out_indices=(0, 1, 2, 3)), dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False),
    dict(out_scales=(0, 1, 2, 3)), dict(out_type='featmap'), dict(out_indices=tuple(range(5))),
    dict(out_indices=tuple(range(7))))
STRIDES = {4, 8, 16, 32}


class Fit(NamedTuple):
    """A model that was fitted to its backbone."""
    model: dict
    seen: DryRun  # the proof
    lines: list[str]  # of a config that inherits the reference, before its ``model``
    changes: dict  # what it says of ``model``
    why: dict[tuple, str]  # of some changes, by the keys that lead there


def reference_model(model: dict) -> dict:
    """A model of ``configs/_base_/models`` with the reference backbone, and widths that fit it."""
    model = copy.deepcopy(model)
    if model['type'] == 'ImageClassifier':
        model['backbone'] = dict(REFERENCE, out_indices=(3, ))
        model['head']['in_channels'] = WIDTHS[-1]
        return model
    model['backbone'] = dict(REFERENCE)
    if model.get('neck'):
        model['neck']['in_channels'] = WIDTHS
    elif 'decode_head' in model:
        model['decode_head']['in_channels'] = WIDTHS
    if model.get('auxiliary_head'):
        model['auxiliary_head']['in_channels'] = WIDTHS[model['auxiliary_head']['in_index']]
    return model


def complete(backbone: dict, scope: str) -> dict:
    """A backbone's settings as the protocol has them.

    ``pretrained=FILE`` is ``init_cfg``. No drop path, unless it is given. Batch norms of a backbone with random weights learn
    their statistics, which MMDetection's ResNets would keep as they are.
    """
    backbone = dict(backbone)
    with DefaultScope.overwrite_default_scope(scope):
        kind = MODELS.get(backbone['type'])
    known = _arguments(kind)
    weights = backbone.get('pretrained')
    if isinstance(weights, str):
        backbone.pop('pretrained')
        backbone['init_cfg'] = dict(type='Pretrained', checkpoint=weights)
    if 'drop_path_rate' in known:
        backbone.setdefault('drop_path_rate', 0.)
    if 'norm_eval' in known and not backbone.get('init_cfg'):
        backbone.setdefault('norm_eval', False)
    return backbone


def _arguments(kind: type) -> set[str]:
    """The names that a class takes, those that it hands on to its base included."""
    found: set[str] = set()
    for base in kind.__mro__:
        if '__init__' in vars(base):
            parameters = inspect.signature(base).parameters
            found |= set(parameters)
            if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
                break
    return found


def find_settings(backbone: dict, scope: str) -> tuple[dict, list[tuple[int, int]]]:
    """A backbone's settings with which it gives all its maps, and (channels, stride) of each.

    Raises:
        ModelError: if it cannot be built, or gives no maps.
    """
    bare = {**backbone, 'init_cfg': None} if backbone.get('init_cfg') else backbone
    try:
        module: Any = build(bare, scope)
    except Exception as error:  # of any kind
        raise ModelError(f'{backbone["type"]} cannot be built: {" ".join(str(error).split())}') from error
    if hasattr(module, 'describe_maps') or hasattr(module, 'feature_info'):
        return backbone, find_maps(bare, scope)
    found: list[tuple[dict, DryRun]] = []
    reason = ''
    for asked in ASKED:
        if set(asked) & set(backbone):
            continue
        try:
            seen = dry_run(build({**bare, **asked}, scope))
        except Exception as error:  # of any kind: it does not know the argument
            reason = reason or str(error)
            continue
        reason = reason or (seen.misfit.line if seen.misfit else '')
        if seen.misfit is None and seen.strides and all(seen.strides):
            found.append((asked, seen))
    if not found:
        raise ModelError(f'{backbone["type"]} gives no maps (channels, height, width): {" ".join(reason.split())}')
    asked, seen = max(found, key=lambda one: len(STRIDES & set(one[1].strides)))  # the first of those
    return {**backbone, **asked}, list(zip(seen.widths, seen.strides))


def check_weights(backbone: dict, scope: str) -> None:
    """Look whether a backbone takes the weights that it is to start from, which stock ones leave in silence where they misfit.

    Ours say so themselves. Files that are not here are left to the training.

    Raises:
        CheckpointError: if none of its parameters is in them, or some are there in another shape.
    """
    path = (backbone.get('init_cfg') or {}).get('checkpoint', '')
    if not Path(path).is_file():
        return
    module: Any = build({**backbone, 'init_cfg': None}, scope)
    if isinstance(module, Backbone):
        return
    found = match_checkpoint(module, load_file(path))
    found.check_any(path, module)
    if found.reshaped:
        raise CheckpointError(f'checkpoint {path} is of another variant of {backbone["type"]}: {found.problems()}')


def fit_backbone(reference: dict, backbone: dict, scope: str) -> Fit:
    """Put a backbone into a model, and change what has to change; a dry run is the proof.

    Maps of one stride become a pyramid by ViTDet's neck.

    Args:
        reference: of ``reference_model``.
        backbone: its settings, of ``complete``.
        scope: the library.

    Raises:
        ModelError: if the backbone cannot be built, or cannot be made to fit.
    """
    backbone, maps = find_settings(backbone, scope)
    bare = {**backbone, 'init_cfg': None} if backbone.get('init_cfg') else dict(backbone)
    fitter = Fitter(dict(model=reference), scope, maps, dry_run(build(reference, scope)))
    if len({stride for _, stride in maps}) == 1 and scope != 'mmpretrain':
        seen = _make_pyramid(fitter, bare)
    else:
        fitter.set(fitter.keys, bare)
        seen = fitter.fit()
    model = fitter.cfg['model']
    if backbone.get('init_cfg'):
        model['backbone']['init_cfg'] = backbone['init_cfg']
    fitter.why.setdefault(fitter.keys, '')  # of a backbone that is the reference's, too
    lines, changes = fitter.changes()
    return Fit(model, seen, lines, changes['model'], fitter.why)


def _make_pyramid(fitter: Fitter, backbone: dict) -> DryRun:
    model = fitter.cfg['model']
    channels, stride = fitter.maps[-1]
    if 'out_indices' in backbone or len(fitter.maps) > 1:
        backbone = {**backbone, 'out_indices': (len(fitter.maps) - 1, )}
    neck = model.get('neck') or {}
    width = neck.get('out_channels', 256)
    fitter.set(fitter.keys, backbone)
    fitter.set(('model', 'neck'), dict(
        type='SimpleFeaturePyramid', in_channels=[channels], stride=stride, out_channels=width,
        num_outs=neck.get('num_outs', 4), start_level=neck.get('start_level', 0)), 'a pyramid of the one map')
    for name in ('decode_head', 'auxiliary_head') if not neck else ():
        if model.get(name):
            before = model[name]['in_channels']
            fitter.set(('model', name, 'in_channels'), [width] * len(before) if isinstance(before, list) else width)
    seen = dry_run(fitter.build())
    if seen.misfit:
        raise ModelError(f'{backbone["type"]} does not fit with a pyramid of its map of stride {stride}: {seen.misfit.line}')
    return seen
