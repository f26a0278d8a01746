"""What can be measured: implementations of central attention, and backbones."""
import ast
import inspect
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ...config_files import find_config
from ...ops import central_attention
from ...ops.backends import BACKENDS
from . import published_simvit
from .measure import Candidate

# Backbones of the size of SimViT-micro, -tiny and -small in the installed libraries, as their own configs build them.
PEERS = {
    'pvtv2-b0': dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=32, num_layers=[2, 2, 2, 2]),
    'pvtv2-b1': dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=64, num_layers=[2, 2, 2, 2]),
    'pvtv2-b2': dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=64, num_layers=[3, 4, 6, 3]),
    'swin-t': dict(type='mmdet.SwinTransformer', embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24],
                   window_size=7, drop_path_rate=0.2),
    'resnet-50': dict(type='mmdet.ResNet', depth=50, norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True),
}
OPERATIONS = ('central_attention', 'mmcv')
COPY = 'copy'  # reads and writes one map, so that its time is that of two units of traffic


def operation_candidates(names: list[str], shape: tuple[int, int, int, int, int], kernel_size: int, dtype: torch.dtype,
                          device: torch.device) -> list[Candidate]:
    """Of central attention on ``(B, H, W, C)`` with a number of heads, after checking that all compute the same.

    Raises:
        ValueError: for an unknown name, or one whose numbers differ from the reference's.
    """
    *size, num_heads = shape
    generator = torch.Generator().manual_seed(0)
    query, key_value = (torch.randn(*size[:3], parts * size[3], generator=generator).to(device, dtype).requires_grad_()
                        for parts in (1, 2))
    copied = torch.empty_like(query)

    def attend(backend: str) -> Callable[[], torch.Tensor]:
        return lambda: central_attention(query, key_value, None, num_heads, kernel_size, backend=backend)

    known = {name: attend(name) for name in ('reference', 'composite', 'eager', 'triton')}
    known['published'] = lambda: published_simvit.central_attention(query, key_value, num_heads, kernel_size)
    known[COPY] = lambda: copied.copy_(query)
    if unknown := set(names) - set(known):
        raise ValueError(f'central_attention is not implemented as {", ".join(sorted(unknown))}; known are {", ".join(known)}')
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 0.1
    few = [x[:1, :9].detach().clone().requires_grad_() for x in (query, key_value)]  # not all: the reference unfolds them

    def results(name: str) -> list[torch.Tensor]:
        few_queries, few_keys_values = few
        out = (published_simvit.central_attention(few_queries, few_keys_values, num_heads, kernel_size) if name == 'published'
               else central_attention(few_queries, few_keys_values, None, num_heads, kernel_size, backend=name))
        return [out, *torch.autograd.grad(out, few, torch.ones_like(out))]

    expected = results('reference')
    for name in names:
        if name != COPY:
            off = max((a - b).abs().max().item() for a, b in zip(results(name), expected))
            if not off < tolerance:
                raise ValueError(f'{name} does not compute central attention: off by {off:.2g}')
    return [Candidate(name, known[name], [query, key_value], device, name != COPY) for name in names]


def backbone_candidate(word: str, batch: int, size: tuple[int, int], dtype: torch.dtype,
                        device: torch.device) -> Candidate:
    """Of a backbone named on the command line: ``[FORM:]NAME[:ARCH][,ARGUMENT=VALUE...]``, a peer, or a config.

    FORM is ``published``, or the backend of central attention.

    Raises:
        ValueError: for a word that names no backbone.
    """
    form: str | None
    form, _, rest = word.partition(':')
    if form not in (*BACKENDS, 'published'):
        form, rest = None, word
    model = build_backbone(rest).to(device)
    if form and type(model).__name__ != 'SimViT':
        raise ValueError(f'only SimViT has the form {form}, {rest!r} has not')
    if form == 'published':
        published_simvit.formulate(model)
    model.requires_grad_(True)
    image = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)

    def call() -> Sequence[torch.Tensor]:
        model.train(torch.is_grad_enabled())
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(image)

    return Candidate(word, call, [*model.parameters()], device, backend=form if form in BACKENDS else None)


def read_backbone(word: str) -> dict:
    """The settings of a backbone that is named on a command line: ``NAME[:ARCH][,ARGUMENT=VALUE...]``.

    NAME is a registered model, with its library before it where it is not ours (``SimViT``, ``mmdet.ResNet``), a peer, a config
    file, or ``timm.NAME``, which the wrapper of MMPreTrain or MMSegmentation builds. ARCH is the argument ``arch``, or
    ``depth`` where a class has that and no ``arch``, as ResNets do.

    Raises:
        ValueError: for an argument without a value, or a word that names no backbone.
    """
    name, *arguments = re.split(r',(?![^(\[]*[)\]])', word)  # not at the commas of a tuple
    name, _, arch = name.partition(':')
    if name in PEERS:
        cfg = dict(PEERS[name])
    elif name.endswith('.py'):
        cfg = dict(Config.fromfile(find_config(name)).model.backbone)
    elif name.startswith('timm.'):
        library = next((library for library in ('mmpretrain', 'mmseg') if find_spec(library)), 'mmpretrain')
        cfg = dict(type=f'{library}.TIMMBackbone', model_name=name.removeprefix('timm.'), features_only=True, pretrained=False)
    else:
        cfg = dict(type=name)
    with DefaultScope.overwrite_default_scope('mmdet'):
        kind = MODELS.get(cfg['type'])
    if kind is None:
        raise ValueError(f'{word!r} names no backbone: neither one of {", ".join(PEERS)}, nor a config file, nor a '
                         f'registered model; write NAME:ARCH, for example SimViT:tiny')
    if arch:
        known = inspect.signature(kind).parameters
        cfg['depth' if 'depth' in known and 'arch' not in known else 'arch'] = _value(arch)
    for argument in arguments:
        key, equals, value = argument.partition('=')
        if not equals:
            raise ValueError(f'{argument!r} in {word!r} must be ARGUMENT=VALUE')
        cfg[key] = _value(value)
    return cfg


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def build_backbone(word: str) -> torch.nn.Module:
    """Of a word without its form, with random weights.

    Raises:
        ValueError: as ``read_backbone`` does.
    """
    cfg = read_backbone(word)
    cfg.pop('init_cfg', None)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg)
