"""DynamicViT: which patches are dropped, in evaluation by gathering and in training by masks."""
from itertools import pairwise

import pytest
import torch
from mmpretrain.models import VisionTransformer

from mmsimvit import CheckpointError, DynamicViT
from mmsimvit.analysis.export import Exportable, export_onnx
from mmsimvit.backbones.dynamicvit import Attention, masked_softmax
from mmsimvit.cli.convert_checkpoint import convert
from tests import golden
from tests.conftest import exports

GOLDEN = golden.load('dynamicvit')
SMALL = dict(embed_dims=32, depth=4, num_heads=2, mlp_ratio=2, qkv_bias=True, predictors=(1, 2, 3), stem_dims=None,
             branch_scale=1., eps=1e-6)
LVVIT = {**SMALL, 'mlp_ratio': 3, 'qkv_bias': False, 'stem_dims': 8, 'branch_scale': 0.5, 'eps': 1e-5}
both = pytest.mark.parametrize('arch', [SMALL, LVVIT], ids=['DeiT', 'LV-ViT'])


def image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(arch=SMALL, **arguments):
    """With weights large enough for tokens that differ."""
    torch.manual_seed(0)
    model = DynamicViT(arch, **arguments).double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def published(variant):
    return {name: tensor.float() for name, tensor in golden.state_dict(GOLDEN['variants'][variant]).items()}


def without_noise(model):
    for predictor in model.predictors:
        predictor.gate.noise = False
    return model


def watch_tokens(model):
    """How many tokens each block takes."""
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize('variant', [
    'deit_256', *(pytest.param(name, marks=pytest.mark.full) for name in ('deit_s', 'deit_b', 'lvvit_s', 'lvvit_m'))])
def test_kept_tokens_and_their_order_are_the_published(variant):
    """In float64: a different order of nearly equal scores keeps others."""
    model = DynamicViT(variant, out_type='raw').double().eval()
    model.load_state_dict(model.published.convert(golden.state_dict(GOLDEN['variants'][variant])))
    case, = GOLDEN['variants'][variant]['cases']
    x = golden.image(case['input'])
    with torch.no_grad():
        (tokens, ), positions = model._run(x)
        decisions = model.forward_decisions(x)[1]
    spread = torch.zeros(1, 196, tokens.shape[2]).double()
    spread[0, positions[-1][0]] = tokens[0, 1:]
    found = tokens[:, 0], tokens[:, 1:], positions[-1], spread.transpose(1, 2).unflatten(2, (14, 14))
    assert max(map(golden.error, found, case['outputs'])) < 1e-9
    assert [decision.sum() for decision in decisions] == [137, 96, 67]
    assert torch.equal(decisions[-1].nonzero()[:, 1], positions[-1][0].sort().values)


def test_training_without_noise_is_the_published():
    variant, (case, ) = GOLDEN['training']['variant'], GOLDEN['training']['cases']
    model = without_noise(DynamicViT(variant, out_type='raw').double())
    model.load_state_dict(model.published.convert(golden.state_dict(GOLDEN['variants'][variant])))
    with torch.no_grad():
        (tokens, ), decisions = model.forward_decisions(golden.image(case['input']))
    found = tokens[:, 0], tokens[:, 1:], decisions[-1][..., None], torch.stack(decisions, 1)
    assert max(map(golden.error, found, case['outputs'])) < 1e-9


def test_masked_softmax_is_the_published():
    """Every entry by itself: a token always sees itself, and the maximum is also over those that are dropped."""
    logits, policy = 3 * image(2, 2, 5, 5).double(), torch.tensor([[1., 0, 1, 0, 1], [1, 1, 1, 0, 0]]).double()
    found = masked_softmax(logits, policy)
    for b in range(2):
        for h in range(2):
            for i in range(5):
                row = logits[b, h, i]
                kept = [row[j].sub(row.max()).exp() * (1 if i == j else policy[b, j]) for j in range(5)]
                expected = [(one + 1e-6 / 5) / (sum(kept) + 1e-6) for one in kept]
                torch.testing.assert_close(found[b, h, i], torch.stack(expected), rtol=1e-12, atol=0)
    whole = masked_softmax(logits, torch.ones(2, 5).double())
    assert 1e-9 < (whole - logits.softmax(-1)).abs().max() < 1e-6  # all kept: the constant alone differs


def test_masked_softmax_is_never_of_low_precision():
    assert masked_softmax(image(1, 1, 3, 3).bfloat16(), torch.ones(1, 3)).dtype == torch.float32
    attention = Attention(8, 2, True).bfloat16()
    assert attention(image(1, 3, 8).bfloat16(), torch.ones(1, 3)).dtype == torch.bfloat16


@both
def test_ratios_are_of_the_patches_of_the_image(arch):
    model = build(arch, out_type='raw').eval()
    seen = watch_tokens(model)
    model(image(1, 3, 224, 224).double())
    assert seen == [197, 1 + 137, 1 + 96, 1 + 67]
    seen.clear()
    model.keep_ratio = 0.5
    model(image(1, 3, 100, 50).double())  # 7 x 4 patches
    assert seen == [29, 1 + 14, 1 + 7, 1 + 3]
    model.train()
    seen.clear()
    model(image(2, 3, 64, 64).double())
    assert seen == [17, 17, 17, 17]  # nothing is gathered


def test_a_patch_is_kept_at_least():
    model = build(out_type='raw', keep_ratio=0.1).eval()
    for size in ((1, 1), (32, 32)):
        tokens, = model(image(2, 3, *size).double())
        assert tokens.shape == (2, 2, 32) and tokens.isfinite().all()


def test_ratio_can_be_changed_at_any_time():
    model = build(keep_ratio=0.9).eval()
    assert model.keep_ratios == (0.9, 0.9**2, 0.9**3)
    model.keep_ratio = 0.7
    assert model.keep_ratios == (0.7, 0.48999999999999994, 0.3429999999999999)
    x = image(1, 3, 96, 96).double()
    assert torch.equal(model(x)[0], build(keep_ratio=0.7).eval()(x)[0])
    for value in (0, 1.1, -0.5, '0.7', None):
        with pytest.raises(ValueError, match='keep_ratio must be a number above 0 and at most 1, got'):
            model.keep_ratio = value
    with pytest.raises(ValueError, match='keep_ratio must be a number above 0 and at most 1, got 7'):
        build(keep_ratio=7)


@both
def test_kept_tokens_descend_and_the_class_token_stays_first(arch):
    model = build(arch, out_type='raw', predictors=(2, ), keep_ratio=0.4).eval()
    scores = []
    model.predictors[0].register_forward_hook(lambda module, args, out: scores.append((args[0], out[..., 0])))
    taken = []
    model.blocks[2].register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    whole = []
    model.blocks[1].register_forward_hook(lambda module, args, out: whole.append(out))
    model(image(2, 3, 96, 80).double())
    (patches, score), = scores
    for index in range(2):
        order = sorted(range(30), key=lambda position: -score[index, position])[:12]
        assert torch.equal(taken[0][index, 1:], patches[index, order])
        assert torch.equal(taken[0][index, 0], whole[0][index, 0])


@both
def test_masks_do_what_gathering_does(arch):
    """Where training decides for the same patches, the class token and those kept are the same but for the small constant."""
    model = build(arch, out_type='raw', keep_ratio=0.6).eval()
    x = image(2, 3, 80, 96).double()
    (tokens, ), positions = model._run(x)
    chosen = iter(model.forward_decisions(x)[1])
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    for predictor in model.predictors:
        predictor.gate.forward = lambda log_probs: next(chosen)
    (masked, ), decisions = model.forward_decisions(x)
    torch.testing.assert_close(masked[:, 0], tokens[:, 0], rtol=0, atol=1e-4)
    kept = masked[:, 1:].gather(1, positions[-1][..., None].expand(-1, -1, 32))
    torch.testing.assert_close(kept, tokens[:, 1:], rtol=0, atol=1e-4)
    assert [decision.sum(1).tolist() for decision in decisions] == [[18, 18], [10, 10], [6, 6]]


def test_once_dropped_is_always_dropped():
    torch.manual_seed(0)
    decisions = build().forward_decisions(image(2, 3, 128, 128).double())[1]
    assert all(decision.shape == (2, 64) and set(decision.unique().tolist()) == {0, 1} for decision in decisions)
    for before, after in pairwise(decisions):
        assert (after <= before).all() and after.sum() < before.sum()


def test_what_an_image_drops_as_a_whole_does_no_harm():
    model = build(out_type='raw')
    for predictor in model.predictors:
        predictor.gate.forward = lambda log_probs: (log_probs[..., 0] - log_probs[..., 0]).detach().requires_grad_()
    outs, decisions = model.forward_decisions(image(2, 3, 32, 32).double())
    assert not decisions[-1].any() and outs[0].isfinite().all()
    outs[0].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_noise_is_drawn_in_training_alone():
    model = build()
    x = image(1, 3, 128, 128).double()
    first, second = (model.forward_decisions(x)[1][0] for _ in range(2))
    assert not torch.equal(first, second)
    without_noise(model)
    assert torch.equal(model.forward_decisions(x)[1][0], model.forward_decisions(x)[1][0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_dropped_patches_tell_what_they_would_be_worth():
    """Decisions have a gradient where they are zero, too."""
    model = without_noise(build())
    outs, decisions = model.forward_decisions(image(1, 3, 64, 64).double())
    gradient, = torch.autograd.grad(outs[0].square().sum(), decisions[-1])
    assert (decisions[-1] == 0).any() and gradient[decisions[-1] == 0].abs().min() > 0


@both
@pytest.mark.parametrize('out_type', ['cls_token', 'raw'])
def test_every_parameter_has_a_gradient(arch, out_type):
    model = build(arch, out_type=out_type)
    outs, _ = model.forward_decisions(image(2, 3, 64, 64).double())
    (outs[0] * torch.randn_like(outs[0])).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@both
def test_recomputation_changes_nothing(arch):
    results = []
    for with_cp in (False, True):
        model = build(arch, with_cp=with_cp, drop_path_rate=0.3)
        torch.manual_seed(1)
        outs, decisions = model.forward_decisions(image(2, 3, 64, 64).double())
        outs[0].square().sum().backward()
        results.append([*outs, *decisions, *(p.grad for p in model.parameters()), *model.buffers()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@both
def test_images_of_a_batch_do_not_meet(arch):
    model = build(arch, out_type='raw').eval()
    x = image(3, 3, 70, 93).double()
    alone = torch.cat([model(x[index:index + 1])[0] for index in range(3)])
    torch.testing.assert_close(model(x)[0], alone, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(x[:2])[0], alone[:2], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last))[0], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('size', [(1, 1), (17, 31), (48, 64)])
def test_small_images_are_padded_at_the_bottom_and_right(size):
    model = build().eval()
    x = image(1, 3, *size).double()
    padded = torch.nn.functional.pad(x, (0, -size[1] % 16, 0, -size[0] % 16))
    torch.testing.assert_close(model(x)[0], model(padded)[0], rtol=0, atol=1e-12)


@both
def test_autocast_is_finite_and_near(arch):
    model = without_noise(build(arch, predictors=())).float()
    x = image(2, 3, 64, 64)
    with torch.autocast('cpu', torch.bfloat16):
        outs, _ = model.forward_decisions(x)
    outs[0].float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.autocast('cpu', torch.bfloat16):
        low, = model(x)
    assert (low - model(x)[0]).abs().max() < 0.15 * model(x)[0].std()
    dynamic = build(arch).float()
    with torch.autocast('cpu', torch.bfloat16):
        outs, decisions = dynamic.forward_decisions(x)
    assert outs[0].isfinite().all() and {decision.dtype for decision in decisions} == {torch.float32}


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_models_run(dtype):
    model = build().to(dtype)
    for training in (True, False):
        out, = model.train(training)(image(2, 3, 64, 64).to(dtype))
        assert out.dtype == dtype and out.isfinite().all()


@exports
@pytest.mark.full
@both
def test_traces_hold_for_other_sizes(arch, tmp_path):
    """So many patches are kept as the image at hand says."""
    model = build(arch, out_type='raw').float().eval()
    dims = {0: torch.export.Dim('batch', min=2, max=64), 2: torch.export.Dim('height', min=35, max=2048),
            3: torch.export.Dim('width', min=35, max=2048)}
    sizes = (2, 3, 64, 64), (3, 3, 71, 130)
    with torch.no_grad():
        exported = torch.export.export(model, (image(2, 3, 66, 97), ), dynamic_shapes=(dims, )).module()
        expected = [model(image(*size))[0] for size in sizes]
        for size, tokens in zip(sizes, expected):
            torch.testing.assert_close(exported(image(*size))[0], tokens)
    onnxruntime = pytest.importorskip('onnxruntime')
    whole = torch.nn.Module()
    whole.backbone = model
    export_onnx(Exportable(whole, 'backbone').eval(), tmp_path / 'model.onnx', (66, 97))
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    for size, tokens in zip(sizes, expected):
        found, = session.run(None, {'images': image(*size).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), tokens, rtol=1e-3, atol=1e-3)


@pytest.mark.full
def test_compiles_to_one_graph_for_any_size():
    for training in (False, True):
        model = build().train(training)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend='eager')
        for size in ((64, 64), (71, 130)):
            found = []
            for function in (compiled, model):
                torch.manual_seed(1)  # of decisions that are drawn
                found.append(function(image(2, 3, *size).double())[0])
            torch.testing.assert_close(*found)


def test_a_ratio_of_one_is_the_base_model(tmp_path):
    """MMPreTrain's DeiT, by its own checkpoint; the predictors begin anew."""
    torch.manual_seed(0)
    arch = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
    theirs = VisionTransformer(arch, out_type='raw')
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.double().eval()
    state_dict = {f'backbone.{name}': tensor for name, tensor in theirs.state_dict().items()}
    torch.save(dict(state_dict={**state_dict, 'head.layers.head.weight': torch.randn(5, 32)}), tmp_path / 'deit.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'deit.pth'))
    x = image(2, 3, 224, 224).double()
    with torch.no_grad():
        expected = theirs(x)[0]
        for arguments in (dict(keep_ratio=1), dict(predictors=())):
            ours = DynamicViT(SMALL, out_type='raw', init_cfg=init_cfg, **arguments)
            ours.init_weights()
            outs, decisions = ours.double().eval().forward_decisions(x)
            torch.testing.assert_close(outs[0], expected, rtol=1e-5, atol=1e-5)  # through float32
            assert len(decisions) == len(ours.predictors) and all((decision == 1).all() for decision in decisions)
    with pytest.raises(CheckpointError, match=r'missing \(blocks\.4'):
        DynamicViT({**SMALL, 'depth': 5}, init_cfg={**init_cfg, 'prefix': 'backbone'}).init_weights()


def test_published_checkpoints_load_as_they_are_and_converted(tmp_path):
    """With predictors or before pruning, and with the head of patches that LV-ViT has."""
    weights = published('lvvit_s')
    head = {'head.weight': torch.randn(1000, 384), 'head.bias': torch.randn(1000), 'aux_head.weight': torch.randn(1000, 384),
            'aux_head.bias': torch.randn(1000)}
    base = {name: tensor for name, tensor in weights.items() if not name.startswith('score_predictor')}
    torch.save(dict(model={**weights, **head}), tmp_path / 'pruned.pth')
    torch.save({**base, **head}, tmp_path / 'base.pth')
    convert(str(tmp_path / 'pruned.pth'), str(tmp_path / 'converted.pth'), 'dynamicvit', with_head=True)
    converted = torch.load(tmp_path / 'converted.pth')['state_dict']
    assert torch.equal(converted['head.aux.weight'], head['aux_head.weight'])
    assert torch.equal(converted['head.fc.bias'], head['head.bias'])
    for name in ('pruned.pth', 'base.pth', 'converted.pth'):
        model = DynamicViT('lvvit_s', out_indices=4, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / name)))
        model.init_weights()
        assert torch.equal(model.pos_embed.class_token, weights['pos_embed'][:, :1])
        assert torch.equal(model.pos_embed.table, weights['pos_embed'][:, 1:])
        assert torch.equal(model.blocks[4].ffn.fc2.bias, weights['blocks.4.mlp.fc2.bias'])
        bias = weights['score_predictor.0.out_conv.2.bias']
        assert torch.equal(model.predictors[0].out_conv[2].bias, bias) == (name != 'base.pth')


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = DynamicViT('deit_256')
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.)
    model.init_weights()
    for tensor in (model.pos_embed.table, model.pos_embed.class_token, model.cls_token):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.15) and tensor.abs().max() < 0.1
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.02 if module.weight.numel() > 1e4 else 0.3)
            assert not module.bias.any()
        elif isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any()
    assert {predictor.in_conv[0].eps for predictor in model.predictors} == {1e-5}
    assert {block.norm1.eps for block in model.blocks} == {model.norms['11'].eps} == {1e-6}


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(out_type='featmap'), 'DynamicViT drops patches and has no maps, .* cls_token or raw, got .*DynamicSwin have maps'),
    (dict(out_type='avg_featmap'), "out_type of DynamicViT must be .*, got 'avg_featmap'"),
    (dict(predictors=(1, 4)), r'predictors must be before some of the 4 blocks \(depth\), got \(1, 4\)'),
    (dict(predictors=(0, 1)), r"arch\['predictors'\] .* ascending order, from 1 on, got \(0, 1\)"),
    (dict(predictors=(2, 2)), r"arch\['predictors'\] .* ascending order, from 1 on, got \(2, 2\)"),
    (dict(embed_dims=34), 'embed_dims must be a multiple of 4, for the layers of the predictors, got 34'),
    (dict(frozen_stages=5), 'frozen_stages must be from -1.*got 5'),
    (dict(out_indices=(2, 1)), r'ascending, got \(2, 1\)'),
])
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicViT(SMALL, **arguments)


def test_refuses_other_images():
    for run in (build(), build().forward_decisions):
        with pytest.raises(ValueError, match=r'DynamicViT takes images of shape \(B, 3, H, W\), got \(1, 4, 32, 32\)'):
            run(torch.zeros(1, 4, 32, 32).double())


def test_earlier_blocks_give_tokens_too():
    model = build(out_indices=(0, 2), out_type='raw').eval()
    first, last = model(image(1, 3, 64, 64).double())
    assert (first.shape[1], last.shape[1]) == (17, 1 + 7) and len(model.blocks) == 3 and len(model.predictors) == 2
    whole = build(out_type='raw').eval()
    assert model.load_state_dict(whole.state_dict(), strict=False).missing_keys == []


def test_frozen_stages_and_layer_depths():
    model = build(frozen_stages=2)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.rsplit('.', 3)[0] for name in frozen if 'predictors' in name} == {'predictors.0'}
    assert {'cls_token', 'pos_embed.table', 'pos_embed.class_token', 'blocks.1.attn.qkv.weight'} <= frozen
    assert not any(name.startswith(('blocks.2', 'predictors.1', 'norms')) for name in frozen)
    assert not model.train().blocks[1].training and model.blocks[2].training
    depths = {name: model.get_layer_depth(name) for name, _ in model.named_parameters()}
    assert depths['pos_embed.class_token'] == (0, 6) and depths['blocks.0.norm1.bias'] == (1, 6)
    assert depths['predictors.0.in_conv.0.bias'] == (1, 6) and depths['norms.3.weight'] == (4, 6)
    assert {'cls_token', 'pos_embed.table', 'pos_embed.class_token', 'predictors.0.in_conv.0.weight'} <= model.no_weight_decay()
