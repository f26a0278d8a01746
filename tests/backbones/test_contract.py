"""What every backbone must do. A new backbone adds a row to BACKBONES."""
from functools import partial
from itertools import combinations
from math import ceil

import pytest
import torch
from mmengine.registry import MODELS

from mmsimvit import LIT, DWNet, GCViT, SimViT

# A small variant of each, and the depths of its parameters' layers.
SMALL = dict(embed_dims=(8, 16, 24, 32), depths=(1, 2, 1, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2))
WITHOUT_HEADS = {key: value for key, value in SMALL.items() if key != 'num_heads'}
BACKBONES = {
    'SimViT': (
        partial(SimViT, SMALL),
        {'stages.0.patch_embed.proj.weight': 0, 'stages.0.blocks.0.attn.q.bias': 1, 'stages.0.norm.weight': 1,
         'stages.1.patch_embed.norm.bias': 1, 'stages.1.blocks.0.norm1.weight': 2, 'stages.1.blocks.1.ffn.fc1.weight': 3,
         'stages.3.blocks.0.attn.kv.weight': 5, 'stages.3.norm.bias': 5}),
    'LIT': (
        partial(LIT, dict(**SMALL, position_grids=None, bias_grids=(4, 3), norm_eps=1e-5, map_norms=(1, 2, 3))),
        {'stages.0.patch_embed.norm.weight': 0, 'stages.0.blocks.0.norm2.bias': 1, 'stages.1.patch_embed.offset.weight': 1,
         'stages.1.blocks.1.ffn.fc1.weight': 3, 'stages.1.norm.weight': 3, 'stages.2.patch_embed.norm.weight': 3,
         'stages.3.blocks.0.attn.position_bias.table': 5}),
    'LIT-Ti': (
        partial(LIT, dict(**SMALL, position_grids=(16, 8, 4, 2), bias_grids=None, norm_eps=1e-6, map_norms=())),
        {'stages.0.patch_embed.1.embedding': 0, 'stages.1.patch_embed.1.embedding': 1, 'stages.3.blocks.0.attn.qkv.bias': 5}),
    'GCViT': (
        partial(GCViT, dict(**SMALL, window_sizes=(7, 4, 3, 2), layer_scale=0.5)),
        {'stages.0.patch_embed.downsample.reduction.weight': 0, 'stages.0.blocks.0.scale1.gamma': 1,
         'stages.1.global_query.mbconvs.0.se.fc1.weight': 1, 'stages.1.blocks.1.attn.kv.weight': 3, 'stages.1.norm.bias': 3,
         'stages.2.patch_embed.mbconv.dwconv.weight': 3, 'stages.3.blocks.0.attn.position_bias.table': 5}),
    'DWNet': (
        partial(DWNet, dict(**WITHOUT_HEADS, kernels='static', channels_per_kernel=(1, 1, 1, 1), dense=True)),
        {'stages.0.patch_embed.norm.bias': 0, 'stages.0.blocks.0.conv.dwconv.weight': 1,
         'stages.1.patch_embed.reduction.weight': 1, 'stages.1.blocks.1.bn.weight': 3, 'stages.1.norm.weight': 3,
         'stages.3.blocks.0.conv.bn3.bias': 5}),
    'dynamic DWNet': (
        partial(DWNet, dict(**WITHOUT_HEADS, kernels='dynamic', channels_per_kernel=(1, 1, 1, 1), dense=True)),
        {'stages.0.blocks.0.conv.dwconv.bias': 1, 'stages.3.blocks.0.conv.dwconv.conv2.bias': 5}),
    'inhomogeneous DWNet': (
        partial(DWNet, dict(**WITHOUT_HEADS, kernels='inhomogeneous', channels_per_kernel=(2, 4, 6, 8), dense=False)),
        {'stages.0.blocks.0.conv.dwconv.conv1.bias': 1, 'stages.3.blocks.0.conv.dwconv.bn.bias': 5}),
}
CLASSES = list(dict.fromkeys(build.func for build, _ in BACKBONES.values()))
SUBSETS = [subset for count in range(1, 5) for subset in combinations(range(4), count)]

# Traces take long; these have every part that is traced in its own way.
TRACED = ['SimViT', 'LIT', 'GCViT', 'dynamic DWNet']
all_backbones = pytest.mark.parametrize('build', [row[0] for row in BACKBONES.values()], ids=list(BACKBONES))


def image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@all_backbones
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (31, 33), (32, 32), (112, 137), (800, 1333)])
def test_any_size_gives_maps_rounded_up(build, size):
    model = build().eval()
    with torch.no_grad():
        outs = model(image(2, 3, *size))
    assert [tuple(out.shape) for out in outs] == [
        (2, channels, ceil(size[0] / stride), ceil(size[1] / stride))
        for channels, stride in zip(model.out_channels, model.strides, strict=True)]
    assert all(out.is_contiguous() and out.isfinite().all() for out in outs)


@pytest.mark.parametrize('backbone', CLASSES)
def test_published_variants_take_large_images(backbone):
    assert MODELS.get(backbone.__name__) is backbone
    for arch in backbone.arch_zoo:
        with torch.device('meta'):
            model = backbone(arch).eval()
            outs = model(torch.empty(1, 3, 800, 1333))
        assert [out.shape[2:] for out in outs] == [(200, 334), (100, 167), (50, 84), (25, 42)]
        assert tuple(out.shape[1] for out in outs) == model.out_channels == tuple(backbone.arch_zoo[arch]['embed_dims'])
        assert model.strides == (4, 8, 16, 32)


@pytest.mark.parametrize('name', [name for name in BACKBONES if name != 'GCViT'])  # whose strided convolutions overlap
def test_padding_is_at_the_bottom_and_right(name):
    model = BACKBONES[name][0]().double().eval()
    x = image(1, 3, 60, 90).double()
    padded = torch.nn.functional.pad(x, (0, 2, 0, 0))  # the first patches are whole with 92 columns
    for a, b in zip(model(x), model(padded), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@all_backbones
@pytest.mark.parametrize('out_indices', SUBSETS, ids=str)
def test_every_parameter_has_a_gradient(build, out_indices):
    torch.manual_seed(0)
    model = build(out_indices=out_indices, drop_path_rate=0.0)
    outs = model(image(2, 3, 64, 64))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    assert len(outs) == len(out_indices) == len(model.out_channels) == len(model.strides)
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@all_backbones
def test_a_subset_gives_the_maps_of_the_whole(build):
    whole = build().eval()
    x = image(1, 3, 64, 96)
    for out_indices in SUBSETS:
        part = build(out_indices=out_indices).eval()
        part.load_state_dict(whole.state_dict(), strict=False)
        for index, out in zip(out_indices, part(x), strict=True):
            assert torch.equal(out, whole(x)[index])


@all_backbones
def test_recomputation_changes_nothing(build):
    x = image(2, 3, 64, 64)
    results = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = build(with_cp=with_cp, drop_path_rate=0.3).double()
        torch.manual_seed(1)
        outs = model(x.double())
        sum(out.square().sum() for out in outs).backward()
        results.append([*outs, *(p.grad for p in model.parameters()), *model.buffers()])  # buffers: statistics of norms
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@all_backbones
def test_recomputation_saves_activations(build):
    saved = []
    for with_cp in (False, True):
        sizes = []
        model = build(with_cp=with_cp)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            model(image(2, 3, 64, 64))
        saved.append(sum(sizes))
    assert saved[1] < 0.5 * saved[0]


@all_backbones
@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages(build, frozen_stages):
    model = build(frozen_stages=frozen_stages, drop_path_rate=0.5, with_cp=frozen_stages % 2 == 0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    prefixes = tuple(f'stages.{index}.' for index in range(frozen_stages)) or (
        ('stages.0.patch_embed.', ) if frozen_stages == 0 else ('nothing', ))
    model.train()
    for name, module in model.named_modules():
        if name.startswith('stages.'):
            assert module.training != f'{name}.'.startswith(prefixes), name
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outs = model(image(2, 3, 64, 64))
    if frozen_stages < 4:
        sum(out.square().sum() for out in outs).backward()
        optimizer.step()
    else:
        assert not any(out.requires_grad for out in outs)
    for name, p in model.named_parameters():
        frozen = name.startswith(prefixes)
        assert p.requires_grad != frozen
        assert torch.equal(p, before[name]) == frozen or (frozen_stages < 4 and not frozen and p.grad is not None), name


@all_backbones
def test_autocast_bfloat16_is_finite_and_near(build):
    torch.manual_seed(0)
    model = build(drop_path_rate=0.0)
    x = image(2, 3, 96, 64)
    with torch.autocast('cpu', torch.bfloat16):
        outs = model(x)
    sum(out.float().square().mean() for out in outs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    model.eval()  # a batch norm over few numbers makes much of their last bits
    with torch.autocast('cpu', torch.bfloat16):
        outs = model(x)
    for low, high in zip(outs, model(x), strict=True):
        assert (low - high).abs().max() < 0.15 * high.std()


@all_backbones
def test_traces_hold_for_other_sizes(build):
    model = build().eval()
    dims = {2: torch.export.Dim('height', min=33, max=2048), 3: torch.export.Dim('width', min=33, max=2048)}
    exported = torch.export.export(model, (image(2, 3, 66, 97), ), dynamic_shapes=(dims, )).module()
    for size in ((64, 64), (71, 130), (128, 35)):
        for a, b in zip(exported(image(2, 3, *size)), model(image(2, 3, *size)), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('name', [*TRACED, 'inhomogeneous DWNet'])
def test_onnx_holds_for_other_sizes(name, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    model = BACKBONES[name][0]().eval()
    dims = {2: torch.export.Dim('height', min=33, max=2048), 3: torch.export.Dim('width', min=33, max=2048)}
    torch.onnx.export(model, (image(2, 3, 66, 97), ), tmp_path / 'model.onnx', dynamo=True, dynamic_shapes=(dims, ),
                      verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    for size in ((64, 64), (71, 130), (128, 35)):
        x = image(2, 3, *size)
        for a, b in zip(session.run(None, {session.get_inputs()[0].name: x.numpy()}), model(x), strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', TRACED)
def test_compiles_to_one_graph_for_any_size(name):
    torch.manual_seed(0)
    model = BACKBONES[name][0](drop_path_rate=0.0).double()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend='aot_eager')
    for size in ((64, 64), (71, 130), (128, 35)):
        results = []
        for function in (compiled, model):
            model.zero_grad()
            outs = function(image(2, 3, *size).double())
            sum(out.square().sum() for out in outs).backward()
            results.append([*outs, *(p.grad.clone() for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', BACKBONES)
def test_layer_depths(name):
    build, depths = BACKBONES[name]
    model = build()
    num_layers = 7  # stem, five blocks, head
    for parameter, depth in depths.items():
        assert parameter in dict(model.named_parameters())
        assert model.get_layer_depth(parameter) == (depth, num_layers)
        assert model.get_layer_depth(f'backbone.{parameter}', prefix='backbone.') == (depth, num_layers)
    assert model.get_layer_depth('roi_head.fc.weight', prefix='backbone.') == (num_layers - 1, num_layers)
    found = {model.get_layer_depth(parameter)[0] for parameter, _ in model.named_parameters()}
    assert found == set(range(num_layers - 1))


@all_backbones
def test_no_weight_decay_names_norms_and_position_biases(build):
    model = build()
    norms = {f'{name}.{p}' for name, module in model.named_modules()
             if isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm2d)) for p in ('weight', 'bias')}
    assert model.no_weight_decay() - {name for name, _ in model.named_parameters() if 'position_bias' in name} == norms


@all_backbones
@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(out_indices=()), 'out_indices must name stages'),
    (dict(out_indices=(4, )), r'out_indices.*got \(4,\)'),
    (dict(out_indices=(2, 1)), r'ascending, got \(2, 1\)'),
    (dict(frozen_stages=5), 'frozen_stages must be from -1.*got 5'),
    (dict(drop_path_rate=1.0), r'drop_path_rate must lie in \[0, 1\), got 1.0'),
])
def test_refuses_bad_arguments(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize('backbone', CLASSES)
def test_refuses_bad_archs(backbone):
    name = backbone.__name__
    good = dict(next(iter(backbone.arch_zoo.values())))
    with pytest.raises(ValueError, match=f"{name} has no arch 'gigantic'; it has .*{next(iter(backbone.arch_zoo))}"):
        backbone('gigantic')
    with pytest.raises(ValueError, match='must have exactly the keys.*depths'):
        backbone({key: value for key, value in good.items() if key != 'depths'})
    with pytest.raises(ValueError, match=r"arch\['depths'\] of .* must be 4 positive whole numbers.*got \(2, 2\)"):
        backbone({**good, 'depths': (2, 2)})
    if 'num_heads' in good:
        with pytest.raises(ValueError, match='multiple of its num_heads, got 33 and 2'):
            backbone({**good, 'embed_dims': (32, 33, 160, 256), 'num_heads': (1, 2, 5, 8)})
    for key, (description, _) in backbone.arch_rules.items():
        with pytest.raises(ValueError, match=rf"arch\['{key}'\] of {name} must be {description}, got 'nonsense'"):
            backbone({**good, key: 'nonsense'})


@all_backbones
@pytest.mark.parametrize('shape', [(1, 4, 32, 32), (3, 32, 32)])
def test_refuses_other_images(build, shape):
    with pytest.raises(ValueError, match=r'takes images of shape \(B, 3, H, W\), got'):
        build()(torch.zeros(shape))


@all_backbones
def test_other_input_channels(build):
    assert build(in_channels=5)(image(2, 5, 64, 64))[0].shape[2:] == (16, 16)
