"""What is MPViT's own; tests/backbones/test_contract.py holds what every backbone must do."""
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import convert_sync_batchnorm
from torch import nn

from mmsimvit import CheckpointError, MPViT
from mmsimvit.backbones.mpvit import Block, Embed, FactorisedAttention, LocalPath, RelativePosition, Stage
from mmsimvit.cli.convert_checkpoint import convert
from mmsimvit.engine.fsdp import wrap_blocks
from mmsimvit.layers import FFN
from tests import golden

SMALL = golden.load('mpvit')['small']['MPViT']['arch']
LAST_NAMES = ('cpe.', 'factoratt_crpe.crpe.')


def published_state_dict(variant):
    """A checkpoint as it was published: each shared tensor under all of its names, in the order of the published modules, equal
    in all of them. The golden file has the last name alone."""
    known, whole = golden.state_dict(golden.load('mpvit')['variants'][variant]), {}
    for name, tensor in known.items():
        path, found, inner = name.partition('.MHCA_layers.')
        number, _, rest = inner.partition('.')
        if not found or not rest.startswith(LAST_NAMES):
            whole[name] = tensor.float()
            continue
        short = rest.removeprefix('factoratt_crpe.')
        whole[f'{path}.{short}'] = tensor.float()
        for block in range(int(number) + 1):
            for name in {short: 0, rest: 0}:
                whole[f'{path}.MHCA_layers.{block}.{name}'] = tensor.float()
    return whole


def test_published_checkpoints_load_as_they_are_and_converted(tmp_path):
    state_dict = published_state_dict('tiny')
    assert len(state_dict) == 871
    shared = 'mhca_stages.2.mhca_blks.1.MHCA_layers.3.factoratt_crpe.crpe.conv_list.2.bias'
    head = {'cls_head.cls.weight': torch.randn(1000, 216), 'cls_head.cls.bias': torch.randn(1000)}
    torch.save({'model': {**state_dict, **head}}, tmp_path / 'classifier.pth')
    torch.save({'state_dict': {f'backbone.{name}': tensor for name, tensor in state_dict.items()}}, tmp_path / 'segmentor.pth')
    torch.save({'model': {'backbone.fpn_lateral2.weight': torch.zeros(1), 'roi_heads.box_head.fc1.weight': torch.zeros(1),
                          **{f'backbone.bottom_up.{name}': tensor for name, tensor in state_dict.items()}}},
               tmp_path / 'detector.pth')
    for name in ('classifier', 'segmentor', 'detector'):
        convert(str(tmp_path / f'{name}.pth'), str(tmp_path / f'{name}_converted.pth'), 'mpvit')
        for path in (tmp_path / f'{name}.pth', tmp_path / f'{name}_converted.pth'):
            model = MPViT('tiny', init_cfg=dict(type='Pretrained', checkpoint=str(path)))
            model.init_weights()
            assert torch.equal(model.stages[2].paths[1].relative.convs[2].bias, state_dict[shared])
            mean = state_dict['mhca_stages.3.InvRes.norm.running_mean']
            assert torch.equal(model.stages[3].local[1].norm.running_mean, mean)
    convert(str(tmp_path / 'classifier.pth'), str(tmp_path / 'head.pth'), 'mpvit', with_head=True)
    converted = torch.load(tmp_path / 'head.pth')['state_dict']
    assert torch.equal(converted['head.fc.weight'], head['cls_head.cls.weight'])
    for name in [name for name in state_dict if '.mhca_blks.1.' in name and '.cpe.' in name]:
        del state_dict[name]
    torch.save(state_dict, tmp_path / 'cut.pth')
    with pytest.raises(CheckpointError, match='8 missing .stages.0.paths.1.position.weight'):
        MPViT('tiny', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'cut.pth'))).init_weights()


def test_the_last_name_of_a_shared_convolution_decides():
    state_dict = published_state_dict('tiny')
    names = [name for name in state_dict if name.startswith('mhca_stages.1.mhca_blks.0.')
             and name.endswith('crpe.conv_list.0.bias')]
    assert len(names) == 5
    for number, name in enumerate(names):
        state_dict[name] = torch.full_like(state_dict[name], number)
    converted = MPViT.published.convert(state_dict)
    assert converted['stages.1.paths.0.relative.convs.0.bias'].unique().tolist() == [4]
    assert names[-1] == 'mhca_stages.1.mhca_blks.0.MHCA_layers.1.factoratt_crpe.crpe.conv_list.0.bias'


def test_blocks_of_a_path_share_their_convolutions():
    model = MPViT('tiny')
    for stage in model.stages:
        for path in stage.paths:
            convs = [module for module in path.modules() if isinstance(module, nn.Conv2d)]
            assert [conv.kernel_size for conv in convs] == [(3, 3), (3, 3), (5, 5), (7, 7)]
            assert not any(isinstance(module, nn.Conv2d) for module in path.blocks.modules())
    assert len({id(path.position) for stage in model.stages for path in stage.paths}) == 11


def reference_attention(attention, relative, x):
    """Head by head, with explicit softmax, in the sheet's order of channels."""
    height, width, channels = x.shape[1:]
    d = channels // 8
    qkv = F.linear(x, attention.qkv.weight, attention.qkv.bias).flatten(1, 2)
    outputs = []
    for head in range(8):
        query, key, value = (qkv[:, :, part * channels + head * d:part * channels + (head + 1) * d] for part in range(3))
        context = key.softmax(1).transpose(1, 2) @ value
        size = 3 if head < 2 else 5 if head < 5 else 7
        conv = relative.convs[(size - 3) // 2]
        first = (head - {3: 0, 5: 2, 7: 5}[size]) * d
        kernel, bias = conv.weight[first:first + d], conv.bias[first:first + d]
        image = value.transpose(1, 2).unflatten(2, (height, width))
        positions = F.conv2d(F.pad(image, (size // 2, ) * 4), kernel, bias, groups=d)
        outputs.append(d**-0.5 * (query @ context) + query * positions.flatten(2).transpose(1, 2))
    return F.linear(torch.cat(outputs, -1), attention.proj.weight, attention.proj.bias).view_as(x)


@pytest.mark.parametrize('size', [(5, 9), (1, 1), (2, 7)])
def test_attention_is_the_published(size):
    """Keys alone have a softmax, over pixels; the scale is on what is attended to and not on the relative positions."""
    attention, relative = FactorisedAttention(24).double(), RelativePosition(24).double()
    nn.init.normal_(attention.qkv.bias)
    x = torch.randn(2, *size, 24, dtype=torch.float64, requires_grad=True)
    parameters = [*attention.parameters(), *relative.parameters()]
    results = []
    for out in (attention(x, relative), reference_attention(attention, relative, x)):
        results.append([out, *torch.autograd.grad(out.square().sum(), (x, *parameters))])
    torch.testing.assert_close(*results)


def test_large_keys_do_not_overflow():
    attention = FactorisedAttention(16)
    nn.init.constant_(attention.qkv.bias, 1e4)
    assert attention(torch.randn(1, 4, 4, 16), RelativePosition(16)).isfinite().all()


def test_attention_keeps_what_it_projects_to_and_no_weights():
    """Queries, keys and values, their product with the relative positions, and what two linear layers take."""
    attention, relative = FactorisedAttention(64), RelativePosition(64)
    kept = {}
    x = torch.randn(1, 32, 32, 64, requires_grad=True) * 1
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t):
        attention(x, relative)
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) < 6.5 * x.nbytes


def test_positions_come_before_each_block_and_past_its_drop_path():
    block = Block(FactorisedAttention(16), FFN(16, 32), 16, 0.99, 1e-6).train()
    position, relative = nn.Conv2d(16, 16, 3, padding=1, groups=16), RelativePosition(16)
    x = torch.randn(1, 4, 5, 16)
    expected = x + position(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.manual_seed(0)
    torch.testing.assert_close(block(x, position, relative), expected)  # both branches are dropped
    y = block.eval()(x, position, relative)
    torch.testing.assert_close(y, super(Block, block).forward(expected, relative))
    assert not torch.allclose(y, super(Block, block).forward(x, relative))


def test_norms_have_two_epsilons():
    eps = {type(module): set() for module in MPViT('tiny').modules() if hasattr(module, 'eps')}
    for module in MPViT('tiny').modules():
        if hasattr(module, 'eps'):
            eps[type(module)].add(module.eps)
    assert eps == {nn.LayerNorm: {1e-6}, nn.BatchNorm2d: {1e-5}}


def test_embeddings_are_a_chain_and_each_is_computed_once():
    stage = Stage(16, 24, 2, 2, 3, [0.], False).eval()
    assert [embed.dwconv.stride for embed in stage.embeds] == [(2, 2), (1, 1), (1, 1)]
    taken, given = [], []
    calls = {'embeds': [], 'paths': [], 'local': []}
    for name, seen in calls.items():
        part = getattr(stage, name)
        for module in [part] if name == 'local' else part:
            module.register_forward_hook(lambda _, args, out, seen=seen: seen.append((args[0], out)))
    x = torch.randn(1, 16, 9, 7)
    out = stage(x)
    assert out.shape == (1, 24, 5, 4)
    (taken, given), (path_inputs, path_maps), (local_inputs, local_maps) = (zip(*seen) for seen in calls.values())
    assert [id(t) for t in taken] == [id(x), id(given[0]), id(given[1])]
    assert [id(t) for t in path_inputs] == [id(t) for t in given] and [id(t) for t in local_inputs] == [id(given[0])]
    maps = torch.cat([*local_maps, *path_maps], 1)  # the path of convolutions comes first
    torch.testing.assert_close(out, stage.aggregate(maps))


@pytest.mark.parametrize(('number', 'reach'), [(1, 1), (2, 2), (3, 3)])
def test_embeddings_see_three_five_and_seven_pixels(number, reach):
    embeds = nn.Sequential(*(Embed(4, 1) for _ in range(number))).eval()
    x = torch.randn(1, 4, 15, 15, requires_grad=True)
    seen = torch.autograd.grad(embeds(x)[0, :, 7, 7].sum(), x)[0][0].abs().sum(0).nonzero()
    assert seen.min() == 7 - reach and seen.max() == 7 + reach


def test_nothing_lies_between_the_convolutions_of_an_embedding():
    embed = Embed(6, 2).double().eval()
    embed.norm.running_mean.normal_()
    embed.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 6, 7, 8).double()
    y = F.conv2d(F.conv2d(x, embed.dwconv.weight, None, 2, 1, groups=6), embed.conv.weight)
    y = F.batch_norm(y, embed.norm.running_mean, embed.norm.running_var, embed.norm.weight, embed.norm.bias, eps=1e-5)
    torch.testing.assert_close(embed(x), y * (y + 3).clamp(0, 6) / 6)


def test_the_path_of_convolutions_ends_without_activation():
    local = LocalPath(6).double().eval()
    for norm in (part.norm for part in local):
        norm.running_mean.normal_()
        norm.bias.data.normal_()
    x = torch.randn(2, 6, 5, 4).double()
    y = F.hardswish(local[0].norm(F.conv2d(x, local[0].conv.weight)))
    y = F.hardswish(local[1].norm(F.conv2d(y, local[1].conv.weight, None, 1, 1, groups=6)))
    torch.testing.assert_close(local(x), x + local[2].norm(F.conv2d(y, local[2].conv.weight)))


@pytest.mark.parametrize(('arch', 'channels'), [
    ('tiny', (96, 176, 216, 216)), ('xsmall', (128, 192, 256, 256)), ('small', (128, 216, 288, 288)),
    ('base', (224, 368, 480, 480))])
def test_maps_have_the_widths_of_the_next_stage(arch, channels):
    with torch.device('meta'):
        model = MPViT(arch)
        outs = model.eval()(torch.empty(1, 3, 75, 90))
    assert model.out_channels == channels == tuple(out.shape[1] for out in outs)
    assert [tuple(out.shape[2:]) for out in outs] == [(19, 23), (10, 12), (5, 6), (3, 3)]


@pytest.mark.parametrize(('arch', 'millions'), [('tiny', 5.8), ('xsmall', 10.5), ('small', 22.8), ('base', 74.8)])
def test_parameters_of_classifiers_are_the_published(arch, millions):
    with torch.device('meta'):
        model = MPViT(arch)
        head = nn.Linear(model.out_channels[-1], 1000)
    number = sum(p.numel() for p in (*model.parameters(), *head.parameters())) / 1e6
    assert number == pytest.approx(millions, abs=0.1)


def test_parallel_paths_have_the_same_drop_path_rates():
    model = MPViT('small', drop_path_rate=0.24)
    rates = [[[block.drop_path.drop_prob for block in path.blocks] for path in stage.paths] for stage in model.stages]
    assert all(path == paths[0] for paths in rates for path in paths)
    assert [rate for paths in rates for rate in paths[0]] == pytest.approx([0.02 * index for index in range(13)])


def test_training_mode_is_chained_and_spares_batch_norms_with_norm_eval():
    for norm_eval in (False, True):
        model = MPViT(SMALL, norm_eval=norm_eval, frozen_stages=1)
        assert model.train() is model and model.training
        modes = {name: module.training for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
        for name, training in modes.items():
            assert training == (not norm_eval and not name.startswith(('stem', 'stages.0'))), name
        assert model.stages[1].aggregate.norm.weight.requires_grad  # which learn all the same
        before = {name: tensor.clone() for name, tensor in model.named_buffers()}
        model(torch.randn(2, 3, 64, 64))[3].sum().backward()
        changed = {name for name, tensor in model.named_buffers() if not torch.equal(tensor, before[name])}
        assert bool(changed) != norm_eval and not any(name.startswith(('stem', 'stages.0')) for name in changed)
        assert not any(module.training for module in model.eval().modules())


def test_synchronised_norms_stay_frozen_and_count_once_when_recomputed():
    """What a config's ``sync_bn`` makes of them; without processes they do as batch norms."""
    results = []
    for synchronise in (False, True):
        torch.manual_seed(0)
        model = MPViT(SMALL, frozen_stages=1, with_cp=True, drop_path_rate=0.)
        if synchronise:
            model = convert_sync_batchnorm(model, 'torch').train()  # as each epoch begins
            assert {type(m) for m in model.modules() if hasattr(m, 'running_mean')} == {nn.SyncBatchNorm}
        model(torch.randn(2, 3, 64, 64))[3].square().sum().backward()
        results.append({**dict(model.named_buffers()), **{name: p.grad for name, p in model.named_parameters()}})
    assert results[0].keys() == results[1].keys()
    for name, tensor in results[0].items():
        if name.startswith(('stem', 'stages.0')):
            assert tensor is None or torch.equal(tensor, MPViT(SMALL).state_dict()[name])
        else:
            torch.testing.assert_close(tensor, results[1][name])
            assert not name.endswith('num_batches_tracked') or tensor == 1


def test_blocks_are_units_of_fsdp_without_what_they_share():
    model = MPViT(SMALL)
    assert wrap_blocks(model, recurse=True, nonwrapped_numel=0)
    units = [module for module in model.modules() if wrap_blocks(module, recurse=False, nonwrapped_numel=0)]
    assert len(units) == 2 * 1 + 3 * 2 + 3 * 1 + 2 * 1 and all(isinstance(unit, Block) for unit in units)
    inside = {id(p) for unit in units for p in unit.parameters()}
    assert not any(id(p) in inside for stage in model.stages for path in stage.paths
                   for p in (*path.position.parameters(), *path.relative.parameters()))


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = MPViT('small')
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.)
    model.init_weights()
    linear = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Linear)])
    assert linear.std().item() == pytest.approx(0.02, rel=0.01) and linear.abs().max() <= 2
    assert not any(m.bias.any() for m in model.modules() if isinstance(m, nn.Linear))
    stage = model.stages[3]  # 288 channels, of which a head has 36
    for conv, variance in ((model.stem[1].conv, 2 / (9 * 64)), (stage.aggregate.conv, 2 / 288),
                           (stage.embeds[0].conv, 2 / 288), (stage.embeds[0].dwconv, 2 / (9 * 288)),
                           (stage.local[0].conv, 2 / 288), (stage.local[1].conv, 2 / 9),
                           (stage.paths[0].position, 1 / 27), (stage.paths[0].relative.convs[1], 1 / 75)):
        assert conv.weight.std().item() == pytest.approx(variance**0.5, rel=0.06)
    for conv in (stage.paths[0].position, *stage.paths[2].relative.convs):  # as torch makes them
        bound = 1 / conv.kernel_size[0]
        assert 0.9 * bound < conv.bias.abs().max() <= bound and 0.95 * bound < conv.weight.abs().max() <= bound
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert (module.weight == 1).all() and not module.bias.any()


def test_heads_share_the_channels():
    with pytest.raises(ValueError, match=r"arch\['embed_dims'\] of MPViT must be 4 positive multiples of 8.*got \(12, 16"):
        MPViT('tiny', embed_dims=(12, 16, 24, 32))
