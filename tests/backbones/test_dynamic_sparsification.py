"""What is the own of dynamic spatial sparsification; test_contract.py holds what every backbone must do."""
import re

import pytest
import torch

from mmsimvit import DynamicConvNeXt, DynamicSwin
from mmsimvit.layers import Gate, ImportancePredictor, count_kept, ratio_loss
from mmsimvit.weights import CheckpointError, convert_state_dict, find_arch
from tests import golden
from tests.backbones.table import BACKBONES, GOLDEN

NAMES = 'DynamicConvNeXt', 'DynamicSwin'
both = pytest.mark.parametrize('name', NAMES)


def build(name, **arguments):
    torch.manual_seed(0)
    model = BACKBONES[name].build(drop_path_rate=0., **arguments)
    for parameter in model.parameters():  # layer scales begin so small that no path would be seen
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.)
    return model


def silence(model):
    for module in model.modules():
        if isinstance(module, Gate):
            module.noise = False


def image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(('system', 'variant'), [('dynamicconvnext', 'convnext_t'), ('dynamicswin', 'swin_t')])
def test_training_gives_the_published_numbers(system, variant):
    """Without noise, and with the decisions that were published."""
    known = GOLDEN[system]
    kind = {'dynamicconvnext': DynamicConvNeXt, 'dynamicswin': DynamicSwin}[system]
    model = kind(variant, map_norms=(3, ), drop_path_rate=0.).double()
    model.load_state_dict(convert_state_dict(system, golden.state_dict(known['variants'][variant])))
    silence(model)
    for case in known['training']:
        last_map, decided = case['outputs']
        with torch.no_grad():
            outs, decisions = model.forward_decisions(golden.image(case['input']))
        assert golden.error(outs[3], last_map) < 1e-9
        assert golden.error(torch.stack(decisions, 1).view(decided['shape']), decided) == 0


@pytest.mark.parametrize(('base', 'expected'), [(0.7, (137, 97, 58)), (0.9, (176, 137, 98)), (0.5, (98, 58, 19))])
def test_counts_are_products_in_double_precision(base, expected):
    """0.7 - 0.2 is less than one half, so that 97 of 196 positions are kept and not 98."""
    ratios = DynamicConvNeXt('tiny', out_indices=(0, ), keep_ratio=base).keep_ratios
    assert tuple(count_kept(196, ratio) for ratio in ratios) == expected
    assert count_kept(90, 0.7) == 62  # 62.99999999999999


@both
def test_so_many_positions_of_the_actual_map_are_kept(name):
    """Padding is not counted, and each predictor decides anew about all positions."""
    model = build(name).double().eval()
    with torch.no_grad():
        outs, decisions = model.forward_decisions(image(2, 3, 100, 150))
    number = outs[2].shape[2] * outs[2].shape[3]
    assert [decision.shape for decision in decisions] == [(2, number)] * 2
    for decision, ratio in zip(decisions, model.keep_ratios, strict=True):
        assert decision.unique().tolist() == [0, 1]
        assert decision.sum(1).tolist() == [int(number * ratio)] * 2
    assert (decisions[1] > decisions[0]).any()


@both
def test_the_ratio_can_be_changed_at_any_time(name):
    model = build(name).double().eval()
    x = image(1, 3, 64, 96)
    first = model(x)[2]
    model.keep_ratio = 0.9
    assert model.keep_ratios == (0.9, 0.9 - 0.2)
    assert not torch.equal(model(x)[2], first)
    model.keep_ratio = (1., 1.)
    outs, decisions = model.forward_decisions(x)
    assert all(decision.all() for decision in decisions)
    for parameter in model.stages[2].predictors.parameters():
        parameter.data.normal_()
    for a, b in zip(model(x), outs, strict=True):  # nothing is decided, but positions are sorted
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    model.keep_ratio = 0.7
    assert model.keep_ratios == (0.7, 0.7 - 0.2)


@both
def test_training_and_evaluation_agree_where_decisions_do(name):
    """For one predictor: with a second one, published training goes on from what a position would have been."""
    model = build(name, predictors=(1, )).double()
    silence(model)
    x = image(1, 3, 64, 96)
    predictor, = model.stages[2].predictors
    predictor.register_forward_hook(lambda module, args, out: out - out.median(1, keepdim=True).values)  # which halves them
    trained, decisions = model.forward_decisions(x)
    assert 0 < decisions[0].mean() < 1
    model.eval()
    model.keep_ratio = (decisions[0].mean().item() + 1e-9, )
    outs, decided = model.forward_decisions(x)
    assert torch.equal(decided[0], decisions[0].detach())
    for a, b in zip(trained, outs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@both
def test_evaluation_computes_each_position_once(name):
    """Masks alone would save nothing."""
    model = build(name, keep_ratio=(0.75, 0.25)).eval()
    block = model.stages[2].blocks
    seen = {}
    for index in (0, 1, 2):
        block[index].ffn.register_forward_hook(lambda m, args, out, i=index: seen.update({i: out[..., 0].numel()}))
    for index in (1, 2):
        block[index].fast.register_forward_hook(lambda m, args, out, i=index: seen.update({-i: out[..., 0].numel()}))
    model(image(2, 3, 128, 128).float())
    assert seen == {0: 128, 1: 96, -1: 32, 2: 32, -2: 96}


@both
def test_two_images_are_as_good_as_one(name):
    """The published evaluation of Swin fails for a batch of exactly two."""
    model = build(name).double().eval()
    x = image(2, 3, 64, 64)
    for whole, one, two in zip(model(x), model(x[:1]), model(x[1:]), strict=True):
        torch.testing.assert_close(whole, torch.cat([one, two]), rtol=1e-9, atol=1e-9)


@both
def test_the_slowest_form_gives_the_same(name):
    """Position by position, out of the block's parts."""
    model = build(name).double().eval()
    stage = model.stages[2]
    with torch.no_grad():
        x = stage.patch_embed(image(1, 32 // 2, 12, 10))
        kept = None
        expected, decisions = stage(image(1, 32 // 2, 12, 10), model.keep_ratios)
        for index, block in enumerate(stage.blocks):
            if index in stage.places:
                number = stage.places.index(index)
                scores = stage.predictors[number](x.flatten(1, 2))[0, :, 0]
                ranked = sorted(range(len(scores)), key=lambda i, s=scores: -s[i])
                kept = set(ranked[:int(len(scores) * (0.7, 0.7 - 0.2)[number])])
                assert decisions[number][0].nonzero().flatten().tolist() == sorted(kept)
            y = block.mix(x)
            x = (y if name == 'DynamicSwin' else x).clone()
            for i in range(x.shape[1] * x.shape[2]):
                where = 0, i // x.shape[2], i % x.shape[2]
                fast = kept is not None and i not in kept
                x[where] = x[where] + (block.fast if fast else block.slow)(y[where])
    torch.testing.assert_close(expected, x.permute(0, 3, 1, 2), rtol=1e-9, atol=1e-9)


def test_remainders_are_dropped_and_no_map_is_empty():
    model = build('DynamicConvNeXt').double().eval()
    x = image(1, 3, 79, 95)
    for a, b in zip(model(x), model(x[:, :, :76, :92]), strict=True):
        assert torch.equal(a, b)
    assert [tuple(out.shape[2:]) for out in model(image(1, 3, 31, 65))] == [(7, 16), (3, 8), (1, 4), (1, 2)]


@pytest.mark.parametrize(('size', 'shifts'), [((3, 8), False), ((8, 3), False), ((4, 4), True)])
def test_maps_that_are_not_larger_than_a_window_are_not_shifted(size, shifts):
    model = build('DynamicSwin').double().eval()  # with windows of 3
    attention = model.stages[1].blocks[1].attn
    assert attention.shift == 1
    x = image(1, *size, 16)
    with torch.no_grad():
        found = attention(x)
        attention.shift = 0
        assert torch.equal(found, attention(x)) != shifts


def test_decisions_are_drawn_with_their_probabilities():
    torch.manual_seed(0)
    gate = Gate()
    log_probs = torch.tensor([0.2, 0.8]).log().expand(1, 100000, 2)
    assert gate(log_probs).mean().item() == pytest.approx(0.2, abs=0.005)
    gate.noise = False
    assert not gate(log_probs).any()


def test_decisions_have_the_gradient_of_the_soft_ones():
    gate = Gate()
    gate.noise = False
    scores = torch.tensor([[[0.3, -0.4], [-2., 1.]]], dtype=torch.float64, requires_grad=True)
    decisions = gate(scores.log_softmax(-1))
    assert decisions.tolist() == [[1, 0]]
    found, = torch.autograd.grad(decisions.sum(), scores)
    expected, = torch.autograd.grad(scores.softmax(-1)[..., 0].sum(), scores)
    torch.testing.assert_close(found, expected)


def test_the_loss_is_the_squared_distance_from_the_ratios():
    decisions = torch.tensor([[1., 1., 0., 0.], [1., 1., 1., 1.]]), torch.tensor([[0., 0., 0., 0.], [1., 0., 0., 0.]])
    expected = ((0.5 - 0.7)**2 + (1 - 0.7)**2 + (0 - 0.5)**2 + (0.25 - 0.5)**2) / 4
    assert ratio_loss(decisions, (0.7, 0.5)).item() == pytest.approx(expected)


def test_a_policy_leaves_positions_out_of_the_mean():
    torch.manual_seed(0)
    predictor = ImportancePredictor(8, 1e-5).double()
    x, policy = image(1, 6, 8), torch.tensor([[1., 1., 0., 1., 0., 1.]], dtype=torch.float64)
    kept = policy[0].bool()
    torch.testing.assert_close(predictor(x, policy)[:, kept], predictor(x[:, kept]))
    assert predictor(x).exp().sum(-1).allclose(torch.ones(1, 6, dtype=torch.float64))


@both
@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(keep_ratio=1.2), r'above 0 and up to 1.*got \[1.2, 1.0\]'),
    (dict(keep_ratio=0.2), r'above 0 and up to 1.*got \[0.2, 0.0\]'),
    (dict(keep_ratio=(0.5, )), r'must be 2 numbers.*got \(0.5,\)'),
    (dict(keep_ratio='all'), 'must be 2 numbers.*all'),
    (dict(predictors=(1, 4)), r'blocks of stage 3, which has 4, got \(1, 4\)'),
    (dict(predictors=(2, 1)), r'ascending numbers of blocks in stage 3.*got \(2, 1\)'),
])
def test_refuses_bad_ratios_and_predictors(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        BACKBONES[name].build(**arguments)


def test_published_classifiers_are_found_and_lack_norms_alone():
    for system in ('dynamicconvnext', 'dynamicswin'):
        for variant, arch in zip('tsb', ('tiny', 'small', 'base'), strict=True):
            known = next(v for name, v in GOLDEN[system]['variants'].items() if name.endswith(f'_{variant}'))
            published = {name: torch.empty(shape, device='meta') for name, shape in known['state'].items()}
            found, fit = find_arch(system, convert_state_dict(system, published))
            assert found == arch and fit.complete
            assert fit.added == [f'stages.{stage}.norm.{kind}' for stage in range(3) for kind in ('weight', 'bias')]


LIBRARIES = {
    'DynamicConvNeXt': ('ConvNeXt', dict(arch=dict(depths=[1, 2, 4, 1], channels=[8, 16, 32, 64]), out_indices=(0, 1, 2, 3),
                                         gap_before_final_norm=False)),
    'DynamicSwin': ('SwinTransformer', dict(arch=dict(embed_dims=8, depths=[1, 2, 4, 1], num_heads=[1, 2, 4, 8]), img_size=96,
                                            window_size=3, out_indices=(0, 1, 2, 3), pad_small_map=True)),
}


@both
def test_base_models_of_mmpretrain_give_their_maps(name, tmp_path, monkeypatch):
    """Where everything is kept, and the rest of the parameters starts anew."""
    models = pytest.importorskip('mmpretrain.models')
    kind, arguments = LIBRARIES[name]
    torch.manual_seed(0)
    base = getattr(models, kind)(**arguments)
    for parameter in base.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.)
    path = tmp_path / 'base.pth'
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in base.state_dict().items()}
                    | {'head.fc.weight': torch.zeros(2, 64)}), path)
    model = BACKBONES[name].build(mlp_ratios=(4, 4, 4, 4), keep_ratio=(1., 1.),
                                  init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    lines = []
    monkeypatch.setattr('mmsimvit.backbones.base.print_log', lambda line, *rest: lines.append(line))
    model.init_weights()
    assert re.search(r'tensors are resized, and \d+ tensors .* start anew', ''.join(lines))
    x = image(2, 3, 96, 96)
    base.double().eval()
    with torch.no_grad():
        for a, b in zip(model.double().eval()(x), base(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@both
def test_part_of_a_fast_path_is_no_base_model(name, tmp_path):
    state = {key: value for key, value in build(name).state_dict().items() if 'predictors.1.out_conv' not in key}
    torch.save(state, tmp_path / 'cut.pth')
    model = BACKBONES[name].build(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'cut.pth')))
    with pytest.raises(CheckpointError, match='6 missing.*predictors.1.out_conv'):
        model.init_weights()


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = DynamicConvNeXt('tiny', out_indices=(0, 1, 2))
    model.init_weights()
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            if module.weight.numel() > 10000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module is model.stages[0].patch_embed.proj or not module.bias.any()
    assert (model.stages[2].blocks[1].scale.gamma == 1e-6).all()
    assert (model.stages[2].blocks[1].fast.scale.gamma == 1e-6).all()
    assert model.stages[2].blocks[0].fast is None
    assert not hasattr(DynamicSwin('tiny', out_indices=(2, )).stages[2].blocks[1].fast.scale, 'gamma')
