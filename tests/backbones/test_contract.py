"""What every backbone with a golden file must do."""
from functools import partial
from itertools import combinations

import pytest
import torch

from mmsimvit.analysis.export import Exportable, export_onnx
from tests.backbones.table import BACKBONES, GOLDEN, SYSTEMS
from tests.conftest import exports

all_backbones = pytest.mark.parametrize('build', [row.build for row in BACKBONES.values()], ids=list(BACKBONES))
all_steady = pytest.mark.parametrize('build', [partial(row.build, **row.steady) for row in BACKBONES.values()],
                                     ids=list(BACKBONES))
all_classes = pytest.mark.parametrize('backbone', SYSTEMS.values())


def on_meta(build, **arguments):
    with torch.device('meta'):
        return build(**arguments)


def subsets_of_maps(build):
    maps = range(len(on_meta(build).describe_maps()))
    return [subset for count in maps for subset in combinations(maps, count + 1)]


def rounded(size, stride, rounds_up):
    """How many rows a map may have: a stem that rounds down has one less than others at some sizes, but one at least."""
    return {-(-size // stride)} if rounds_up else {max(size // stride, 1), -(-size // stride)}


def image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (31, 33), (32, 32), (112, 137), (800, 1333)])
def test_any_size_gives_maps_of_its_strides(name, size):
    model = BACKBONES[name].build().eval()
    with torch.no_grad():
        outs = model(image(2, 3, *size))
    assert len(outs) == len(model.feature_info)
    for out, info in zip(outs, model.feature_info, strict=True):
        assert out.shape[:2] == (2, info.channels)
        assert all(found in rounded(pixels, info.stride, BACKBONES[name].rounds_up)
                   for found, pixels in zip(out.shape[2:], size, strict=True))
    assert all(out.is_contiguous() and out.isfinite().all() for out in outs)


@pytest.mark.parametrize('system', [system for system in SYSTEMS if GOLDEN[system]['small']])  # others have no maps
def test_published_variants_take_large_images(system):
    for arch in SYSTEMS[system].arch_zoo:
        model = on_meta(SYSTEMS[system], arch=arch).eval()
        outs = model(torch.empty(1, 3, 800, 1333, device='meta'))
        assert tuple(out.shape[1] for out in outs) == model.out_channels
        for out, stride in zip(outs, model.strides, strict=True):
            assert out.shape[2] == 800 // stride and out.shape[3] in rounded(1333, stride, False)


@pytest.mark.parametrize('name', [name for name, row in BACKBONES.items() if row.rounds_up and not row.overlapping])
def test_padding_is_at_the_bottom_and_right(name):
    model = BACKBONES[name].build().double().eval()
    x = image(1, 3, 60, 90).double()
    padded = torch.nn.functional.pad(x, (0, 2, 0, 0))  # the first patches are whole with 92 columns
    for a, b in zip(model(x), model(padded), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(('build', 'out_indices'), [
    pytest.param(row.build, subset, id=f'{name}-{subset}', marks=[] if subset in ((1, 2), whole) else pytest.mark.full)
    for name, row in BACKBONES.items() for *subsets, whole in [subsets_of_maps(row.build)] for subset in (*subsets, whole)])
def test_every_parameter_has_a_gradient(build, out_indices):
    torch.manual_seed(0)
    model = build(out_indices=out_indices, drop_path_rate=0.0)
    for parameter in model.parameters():
        if not parameter.any():  # what begins at zero may hide what is behind
            torch.nn.init.normal_(parameter, std=0.1)
    outs = model(image(2, 3, 64, 64))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    assert len(outs) == len(out_indices) == len(model.out_channels) == len(model.strides)
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@all_backbones
def test_a_subset_gives_the_maps_of_the_whole(build):
    subsets = subsets_of_maps(build)
    whole = build(out_indices=subsets[-1]).eval()
    x = image(1, 3, 64, 96)
    for out_indices in subsets:
        part = build(out_indices=out_indices).eval()
        part.load_state_dict(whole.state_dict(), strict=False)
        for index, out in zip(out_indices, part(x), strict=True):
            assert torch.equal(out, whole(x)[index])


@all_backbones
def test_images_of_a_batch_do_not_meet(build):
    model = build().double().eval()
    x = image(3, 3, 70, 93).double()
    for whole, *alone in zip(model(x), *(model(x[index:index + 1]) for index in range(3)), strict=True):
        torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-9, atol=1e-9)


@all_backbones
def test_channels_last_images_give_the_same(build):
    model = build().double().eval()
    x = image(2, 3, 70, 93).double()
    for a, b in zip(model(x), model(x.contiguous(memory_format=torch.channels_last)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert b.is_contiguous()


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


def number_of_stages(build):
    return max(layer.stage for layer in on_meta(build).layer_order())


@pytest.mark.parametrize(('build', 'frozen_stages'), [
    pytest.param(row.build, frozen_stages, id=f'{name}-{frozen_stages}') for name, row in BACKBONES.items()
    for frozen_stages in range(-1, number_of_stages(row.build) + 1)])
def test_frozen_stages(build, frozen_stages):
    model = build(frozen_stages=frozen_stages, drop_path_rate=0.5, with_cp=frozen_stages % 2 == 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prefixes = tuple(f'{prefix}.' for layer in model.layer_order() for prefix in layer.prefixes
                     if layer.stage <= frozen_stages) or ('nothing', )
    model.train()
    for name, module in model.named_modules():
        if name and name != 'stages':
            assert module.training != f'{name}.'.startswith(prefixes), name
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outs = model(image(2, 3, 64, 64))
    if frozen_stages < number_of_stages(build):
        sum(out.square().sum() for out in outs).backward()
        optimizer.step()
    else:
        assert not any(out.requires_grad for out in outs)
    for name, tensor in model.state_dict(keep_vars=True).items():
        frozen = f'{name}.'.startswith(prefixes)
        if isinstance(tensor, torch.nn.Parameter):
            assert tensor.requires_grad != frozen, name
            assert frozen or tensor.grad is not None, name  # which drop path may have made zero
        if frozen or 'running' in name:
            assert torch.equal(tensor, before[name]) == frozen, name


@all_steady
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


@all_steady
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_models_run(build, dtype):
    torch.manual_seed(0)
    model = build().eval()
    expected = model(image(2, 3, 64, 64))
    for low, high in zip(model.to(dtype)(image(2, 3, 64, 64).to(dtype)), expected, strict=True):
        assert low.dtype == dtype
        assert (low - high).abs().max() < 0.2 * high.std()


@exports
@pytest.mark.full
@pytest.mark.parametrize('name', BACKBONES)
def test_traces_hold_for_other_sizes(name):
    model = BACKBONES[name].build().eval()
    dims = {0: torch.export.Dim('batch', min=2, max=64), 2: torch.export.Dim('height', min=model.min_traced_size, max=2048),
            3: torch.export.Dim('width', min=model.min_traced_size, max=2048)}
    with torch.no_grad():  # a trace then looks more closely at strides
        exported = torch.export.export(model, (image(2, 3, 66, 97), ), dynamic_shapes=(dims, )).module()
        for size in ((2, 3, 64, 64), (3, 3, 71, 130), (2, 3, 128, model.min_traced_size)):
            for a, b in zip(exported(image(*size)), model(image(*size)), strict=True):
                torch.testing.assert_close(a, b)


@exports
@pytest.mark.full
@pytest.mark.parametrize('name', BACKBONES)
def test_onnx_holds_for_other_sizes(name, tmp_path):
    """As tools/export_onnx.py writes it, for any batch too."""
    onnxruntime = pytest.importorskip('onnxruntime')
    model = torch.nn.Module()
    model.backbone = BACKBONES[name].build()
    export_onnx(Exportable(model, 'backbone').eval(), tmp_path / 'model.onnx', (66, 97))
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    for size in ((2, 3, 64, 64), (1, 3, 71, 130), (3, 3, 128, 35)):
        with torch.no_grad():
            expected = model.backbone(image(*size))
        for a, b in zip(session.run(None, {'images': image(*size).numpy()}), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=1e-4)


@all_backbones
def test_first_gradients_of_padded_images_are_those_of_whole_ones(build):
    """With biases of zero, tokens of zero padding stay zero, each norm multiplies their gradients, and they overflow."""
    torch.manual_seed(0)
    model = build(drop_path_rate=0.0)
    model.init_weights()
    norms = []
    for rows in (128, 32):
        x = image(2, 3, 128, 128)
        x[:, :, rows:] = 0
        model.zero_grad()
        outs = model(x)
        generator = torch.Generator().manual_seed(0)
        sum((y * torch.randn(y.shape, generator=generator)).mean() for y in outs).backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
    assert 1 / 5 < norms[1] / norms[0] < 5


@pytest.mark.parametrize(('name', 'backend'), [
    ('SimViT', 'aot_eager'), *(pytest.param(name, 'eager', marks=pytest.mark.full) for name in BACKBONES if name != 'SimViT')])
def test_compiles_to_one_graph_for_any_size(name, backend):
    torch.manual_seed(0)
    model = BACKBONES[name].build(drop_path_rate=0.0).double()
    torch._dynamo.reset()  # backbones share code, which is compiled for so many models in one process and no more
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for size in ((64, 64), (71, 130)):
        results = []
        for function in (compiled, model):
            model.zero_grad()
            torch.manual_seed(1)  # of decisions that are drawn
            outs = function(image(2, 3, *size).double())
            sum(out.square().sum() for out in outs).backward()
            results.append([*outs, *(p.grad.clone() for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', BACKBONES)
def test_layer_depths(name):
    depths = BACKBONES[name].depths
    model = BACKBONES[name].build()
    num_layers = max(depths.values()) + 2  # the stem, the blocks, heads
    for parameter, depth in depths.items():
        assert parameter in dict(model.named_parameters())
        assert model.get_layer_depth(parameter) == (depth, num_layers)
        assert model.get_layer_depth(f'backbone.{parameter}', prefix='backbone.') == (depth, num_layers)
    assert model.get_layer_depth('roi_head.fc.weight', prefix='backbone.') == (num_layers - 1, num_layers)
    found = {model.get_layer_depth(parameter)[0] for parameter, _ in model.named_parameters()}
    assert found == set(range(num_layers - 1))


@all_backbones
def test_no_weight_decay_names_norms_and_positions(build):
    model = build()
    norms = {f'{name}.{p}' for name, module in model.named_modules()
             if isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.BatchNorm2d)) for p in ('weight', 'bias')}
    assert model.no_weight_decay() == norms | {name for name, _ in model.named_parameters()
                                               if 'position_bias' in name or name == 'pos_embed.table'}


@all_backbones
@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(out_indices=()), 'out_indices must be among 0, 1, 2.*, ascending, '),
    (dict(out_indices=(4, )), r'out_indices.*got \(4,\)'),
    (dict(out_indices=(2, 1)), r'ascending, got \(2, 1\)'),
    (dict(frozen_stages=5), 'frozen_stages must be from -1.*got 5'),
    (dict(drop_path_rate=1.0), r'drop_path_rate must lie in \[0, 1\), got 1.0'),
])
def test_refuses_bad_arguments(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@all_classes
def test_refuses_bad_archs(backbone):
    name = backbone.__name__
    good = dict(next(iter(backbone.arch_zoo.values())))
    key = next(iter(good))
    with pytest.raises(ValueError, match=f"{name} has no arch 'gigantic'; it has .*{next(iter(backbone.arch_zoo))}"):
        backbone('gigantic')
    with pytest.raises(ValueError, match=f'must have exactly the keys.*{key}'):
        backbone({other: value for other, value in good.items() if other != key})
    if 'depths' in good:
        with pytest.raises(ValueError, match=rf"arch\['depths'\] of .* must be {len(good['depths'])} positive whole numbers.*"
                                             r'got \(2,\)'):
            backbone({**good, 'depths': (2, )})
    if 'num_heads' in good and 'embed_dims' in good:
        heads = good['num_heads']
        dims = 8 * heads + 1 if isinstance(heads, int) else tuple(8 * number + (number > 1) for number in heads)
        with pytest.raises(ValueError, match='multiple of its num_heads, got'):
            backbone({**good, 'embed_dims': dims})
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
    model = build(in_channels=5)
    assert model(image(2, 5, 64, 64))[0].shape[2:] == (64 // model.strides[0], ) * 2
