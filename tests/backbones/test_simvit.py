"""What is SimViT's own; tests/backbones/test_contract.py holds what every backbone must do."""
import sys

import pytest
import torch
from torch.nn.modules import module as modules

from mmsimvit import SimViT
from mmsimvit.layers import ffn


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = SimViT('micro')
    model.init_weights()
    fc = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Linear)])
    assert fc.std().item() == pytest.approx(0.02, rel=0.01)
    block = model.stages[0].blocks[0]
    assert block.ffn.dwconv.weight.std().item() == pytest.approx((2 / 9)**0.5, rel=0.05)  # 3 x 3, one filter a group
    assert model.stages[1].patch_embed.proj.weight.std().item() == pytest.approx((2 / (4 * 64))**0.5, rel=0.05)
    first = model.stages[0].patch_embed.proj.bias  # the one exception, see below
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith('bias') and p is not first)
    assert all((p == 1).all() for name, p in model.named_parameters() if 'norm' in name and name.endswith('weight'))


@pytest.mark.parametrize('arch', ['micro', 'small'])
def test_first_gradients_of_padded_images_are_those_of_whole_ones(arch):
    """With the published biases of zero, they are infinite for small, and clipping would make a step of nothing of them."""
    torch.manual_seed(0)
    model = SimViT(arch, drop_path_rate=0.0)
    model.init_weights()

    def gradient_norm(image):
        model.zero_grad()
        outputs = model(image)
        weights = torch.Generator().manual_seed(0)
        sum((y * torch.randn(y.shape, generator=weights)).mean() for y in outputs).backward()
        return torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()

    image = torch.randn(2, 3, 128, 128)
    whole = gradient_norm(image)
    image[:, :, 32:] = 0
    assert gradient_norm(image) == pytest.approx(whole, rel=0.5)


def test_two_kinds_of_eps():
    eps = {name: m.eps for name, m in SimViT('micro').named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert {value for name, value in eps.items() if 'patch_embed' in name} == {1e-5}
    assert {value for name, value in eps.items() if 'patch_embed' not in name} == {1e-6}


@pytest.mark.parametrize('kernel_size', [1, 5, 7])
def test_other_windows_reach_as_far_as_they_say(kernel_size):
    """One block without its convolution: the output changes where the window around a changed pixel reaches."""
    model = SimViT(dict(embed_dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2), mlp_ratios=(1, 1, 1, 1)),
                   kernel_size=kernel_size, out_indices=(0, )).eval()
    torch.nn.init.zeros_(model.stages[0].blocks[0].ffn.fc2.weight)
    x = torch.randn(1, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[..., 28:32, 28:32] += torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    rows, cols = torch.nonzero((model(x)[0] != model(changed)[0]).any(1)[0], as_tuple=True)
    reach = kernel_size // 2
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (7 - reach, 7 + reach, 7 - reach, 7 + reach)


def test_attention_dropout_is_for_training_only():
    model = SimViT('micro', attn_drop_rate=0.5, drop_path_rate=0.0)
    x = torch.randn(1, 3, 64, 64)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_drop_path_rates_grow_linearly_from_zero():
    model = SimViT('micro', drop_path_rate=0.18)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.02 * index for index in range(10)])
    cut = SimViT('micro', drop_path_rate=0.18, out_indices=(1, ))
    assert [block.drop_path.drop_prob for stage in cut.stages for block in stage.blocks] == rates[:5]


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(kernel_size=2), 'kernel_size must be odd.*got 2'),
    (dict(attn_drop_rate=1.5), 'attn_drop_rate must lie in.*got 1.5'),
])
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimViT('micro', **arguments)


@pytest.mark.parametrize('worthwhile_bytes', [0, 1 << 30], ids=['in chunks', 'as a whole'])
def test_recomputing_the_ffn_changes_memory_alone(worthwhile_bytes, monkeypatch):
    monkeypatch.setattr(sys.modules['mmsimvit.ops.ffn'], 'WORTHWHILE_BYTES', worthwhile_bytes)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    results, kept = [], []
    for recompute_ffn in (False, True):
        torch.manual_seed(0)
        model = SimViT('micro', drop_path_rate=0.3, recompute_ffn=recompute_ffn).double()
        torch.manual_seed(1)
        saved = {}
        with torch.autograd.graph.saved_tensors_hooks(
                lambda t, saved=saved: saved.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t,
                lambda t: t):
            outs = model(x)
        sum(out.square().sum() for out in outs).backward()
        results.append([*outs, *(p.grad for p in model.parameters())])
        kept.append(sum(saved.values()) - sum(p.nbytes for p in model.parameters()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert kept[1] < 0.65 * kept[0]


@pytest.fixture
def chunked(monkeypatch):
    """The FFNs that ran in chunks, however small they are."""
    monkeypatch.setattr(sys.modules['mmsimvit.ops.ffn'], 'WORTHWHILE_BYTES', 0)
    ran = []
    original = ffn.conv_ffn_in_chunks
    monkeypatch.setattr(ffn, 'conv_ffn_in_chunks', lambda *a: ran.append(len(a)) or original(*a))
    return ran


@pytest.mark.parametrize(('recompute_ffn', 'gradients', 'count'), [
    (False, False, 10), (True, False, 10), (False, True, 0), (True, True, 5)])  # SimViT-micro: five of at most 128 channels
def test_ffns_run_in_chunks_where_little_or_nothing_is_kept(recompute_ffn, gradients, count, chunked):
    with torch.set_grad_enabled(gradients):
        SimViT('micro', recompute_ffn=recompute_ffn)(torch.randn(1, 3, 32, 32))
    assert len(chunked) == count


def test_the_largest_ffns_are_recomputed_in_any_case(chunked):
    backbone = SimViT('micro', out_indices=(0, ))
    backbone(torch.randn(1, 3, 720, 724))  # 180 x 181 x 256 hidden numbers: just below 32 MiB
    assert not chunked
    backbone(torch.randn(1, 3, 728, 724))
    assert len(chunked) == 2


def test_changed_layers_of_an_ffn_are_called(chunked):
    """Hooks, quantized or wrapped layers, parametrizations: their weights alone do not say what they compute."""
    model = SimViT('micro').eval()
    called = []
    model.stages[0].blocks[0].ffn.fc1.register_forward_hook(lambda *a: called.append('hook'))

    class Wrapped(torch.nn.Linear):
        def forward(self, x):
            called.append('wrapped')
            return super().forward(x)

    model.stages[3].blocks[1].ffn.fc2 = Wrapped(1024, 256)
    torch.nn.utils.parametrizations.weight_norm(model.stages[1].blocks[0].ffn.fc1)
    patched = model.stages[2].blocks[0].ffn.dwconv
    forward = patched.forward
    patched.forward = lambda x: called.append('patched') or forward(x)
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert called == ['hook', 'patched', 'wrapped']
    assert len(chunked) == 6


@pytest.mark.parametrize('register', [modules.register_module_forward_hook, modules.register_module_forward_pre_hook,
                                      modules.register_module_full_backward_hook])
def test_hooks_of_all_modules_see_every_layer_of_an_ffn(register, chunked):
    model = SimViT('micro', out_indices=(0, ), recompute_ffn=True)
    seen = set()
    handle = register(lambda module, *_: seen.add(module))
    try:
        model(torch.randn(1, 3, 32, 32))[0].sum().backward()
    finally:
        handle.remove()
    assert seen >= {layer for block in model.stages[0].blocks for layer in (block.ffn.fc1, block.ffn.dwconv, block.ffn.fc2)}
    assert not chunked
    model(torch.randn(1, 3, 32, 32))
    assert len(chunked) == 2
