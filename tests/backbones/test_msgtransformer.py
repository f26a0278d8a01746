"""What is MSG-Transformer's own; tests/backbones/test_contract.py holds what every backbone must do."""
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmsimvit import MSGTransformer, convert_state_dict
from mmsimvit.backbones.msgtransformer import Block, Layout, MessengerBias, Stem, Transition, exchange_messengers
from mmsimvit.cli.convert_checkpoint import convert
from mmsimvit.weights import convert_head
from tests import golden
from tests.conftest import ROOT

SMALL = golden.load('msgtransformer')['small']['MSGTransformer']['arch']
W2 = dict(window_size=2, depths=(2, 4, 4, 2))  # of the golden variant tiny_w2
CPU = torch.device('cpu')


def layout(height, width, size, shuffle_size):
    return Layout(height, width, size, shuffle_size, CPU)


def randomise(model, seed=0):
    """All parameters random, so that none is without effect."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.normal_(0, 0.3, generator=generator)
    return model.double()


def plain_exchange(messengers, size):
    """In a region, as the paper draws it: ``(G, C)`` with G groups of channels, transposed; missing windows are None."""
    groups = [None if m is None else list(m.chunk(size * size)) for m in messengers]
    return [None if m is None else torch.cat([m[b] if groups[b] is None else groups[b][a] for b in range(size * size)])
            for a, m in enumerate(groups)]


def plain_block(block, x, messengers, size, shuffle_size):
    """A block, window by window and query by query."""
    height, width, dims = x.shape
    attn, heads = block.attn, block.attn.num_heads
    table, scalars = attn.position_bias.table, attn.position_bias.messenger
    x, messengers = x.clone(), messengers.clone()
    for i in range(messengers.shape[0]):
        for j in range(messengers.shape[1]):
            places = [(r, c) for r in range(i * size, min((i + 1) * size, height))
                      for c in range(j * size, min((j + 1) * size, width))]
            tokens = torch.stack([messengers[i, j], *(x[place] for place in places)])
            query, key, value = attn.qkv(block.norm1(tokens)).chunk(3, -1)
            out = []
            for number, place in enumerate([None, *places]):
                row = []
                for head in range(heads):
                    part = slice(head * dims // heads, (head + 1) * dims // heads)
                    logits = []
                    for other, key_place in enumerate([None, *places]):
                        if place is None:
                            bias = scalars[head, 1, 0, 0]
                        elif key_place is None:
                            bias = scalars[head, 0, 0, 0]
                        else:
                            bias = table[(place[0] - key_place[0] + size - 1) * (2 * size - 1)
                                         + place[1] - key_place[1] + size - 1, head]
                        logits.append(query[number, part] @ key[other, part] * (dims // heads)**-0.5 + bias)
                    row.append(torch.stack(logits).softmax(0) @ value[:, part])
                out.append(torch.cat(row))
            tokens = tokens + attn.proj(torch.stack(out))
            messengers[i, j] = tokens[0]
            for place, token in zip(places, tokens[1:]):
                x[place] = token
    if shuffle_size > 1:
        mixed = messengers.clone()
        rows, columns = messengers.shape[:2]
        for top in range(0, rows, shuffle_size):
            for left in range(0, columns, shuffle_size):
                cells = [(top + r, left + c) for r in range(shuffle_size) for c in range(shuffle_size)]
                found = [messengers[cell] if cell[0] < rows and cell[1] < columns else None for cell in cells]
                for cell, new in zip(cells, plain_exchange(found, shuffle_size)):
                    if new is not None:
                        mixed[cell] = new
        messengers = mixed
    x, messengers = (y + block.ffn(block.norm2(y)) for y in (x, messengers))
    return x, messengers


@pytest.mark.parametrize('size', [(6, 12), (7, 5), (2, 8), (2, 1)])
@pytest.mark.parametrize('shuffle_size', [1, 2])
def test_blocks_are_the_paper_s_window_by_window(size, shuffle_size):
    """At sizes with remainders too, where windows are cut off and regions incomplete. Pitfall: the published code fails at maps
    smaller than a window."""
    model = randomise(MSGTransformer(SMALL, shuffle_sizes=(shuffle_size, ) * 4, out_indices=(1, ))).eval()
    block = model.stages[1].blocks[0]
    torch.manual_seed(0)
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    order = layout(*size, 3, shuffle_size)
    messengers = torch.randn(2, *order.messenger_shape, 16, dtype=torch.float64)
    found = order.merge(block(order.split(x, messengers), order))
    for index in range(2):
        expected = plain_block(block, x[index], messengers[index], 3, shuffle_size)
        torch.testing.assert_close((found[0][index], found[1][index]), expected)


@pytest.mark.parametrize('size', [(8, 12), (9, 5), (1, 1), (3, 7), (4, 4)])
def test_tokens_come_back_in_their_places(size):
    order = layout(*size, 4, 2)
    x = torch.randn(2, *size, 3)
    messengers = torch.randn(2, *order.messenger_shape, 3)
    tokens = order.split(x, messengers)
    assert tokens.shape[1] == size[0] * size[1] + messengers[0, ..., 0].numel()  # no padding
    assert torch.equal(tokens[:, order.messengers], messengers.flatten(1, 2))
    for found, expected in zip(order.merge(tokens), (x, messengers), strict=True):
        assert torch.equal(found, expected)


def test_exchange_transposes_groups_and_undoes_itself():
    """Pitfall: groups and windows change roles."""
    messengers = torch.arange(16 * 32).view(16, 32)
    index = exchange_messengers(16, 4, 4, 4, CPU)
    found = messengers.view(-1, 2)[index].view(16, 32)
    assert torch.equal(found.view(16, 16, 2), messengers.view(16, 16, 2).transpose(0, 1))
    assert torch.equal(index[index], torch.arange(256))


@pytest.mark.parametrize(('rows', 'columns', 'size'), [(4, 8, 2), (5, 3, 2), (3, 3, 4), (1, 6, 4)])
def test_exchange_stays_in_its_region_and_loses_nothing(rows, columns, size):
    index = exchange_messengers(rows * columns, rows, columns, size, CPU)
    assert torch.equal(index[index], torch.arange(len(index)))
    for group, other in enumerate(index.tolist()):
        (row, column), (other_row, other_column) = (divmod(number // size**2, columns) for number in (group, other))
        assert (row // size, column // size) == (other_row // size, other_column // size)


def test_exchange_is_between_attention_and_ffn():
    """Pitfall: at the end of the block, what a messenger's FFN sees would be another."""
    torch.manual_seed(0)
    model = randomise(MSGTransformer(SMALL, out_indices=(1, ))).eval()
    block, order = model.stages[1].blocks[0], layout(6, 6, 3, 2)
    x = torch.randn(1, 40, 16, dtype=torch.float64)
    seen = []
    block.attn.register_forward_hook(lambda module, args, out: seen.append(out))
    block.norm2.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    block(x, order)
    before = (x + seen[0])[:, order.messengers].view(4, 4, 4)
    assert torch.equal(seen[1][:, order.messengers].view(4, 4, 4), before.transpose(0, 1))


def test_messengers_alone_connect_windows():
    model = randomise(MSGTransformer(SMALL, depths=(2, 1, 1, 1), out_indices=(0, ))).eval()
    stage = model.stages[0]
    order = layout(12, 12, 3, 4)
    tokens = order.split(torch.randn(1, 12, 12, 16, dtype=torch.float64), torch.randn(1, 4, 4, 16, dtype=torch.float64))
    tokens.requires_grad_()

    def depends(blocks):
        out = tokens
        for block in blocks:
            out = block(out, order)
        out = order.merge(out)[0][0, 0, 0].sum()
        return order.merge(torch.autograd.grad(out, tokens)[0])[0][0].abs().sum(-1) > 0

    within = torch.zeros(12, 12, dtype=bool)
    within[:3, :3] = True
    assert torch.equal(depends(stage.blocks[:1]), within)
    assert depends(stage.blocks).all()


def test_biases_of_messengers_are_not_symmetric():
    """Pitfall: the first scalar is for keys of pixels' queries alone; between messengers it is the second."""
    bias = MessengerBias(2, 3)
    whole = bias()
    assert whole.shape == (3, 5, 5)
    assert torch.equal(whole[:, 1:, 0], bias.messenger[:, 0, 0].expand(3, 4))
    assert torch.equal(whole[:, 0], bias.messenger[:, 1, 0].expand(3, 5))
    for query in range(4):
        for key in range(4):
            row, column = query // 2 - key // 2 + 1, query % 2 - key % 2 + 1
            assert torch.equal(whole[:, 1 + query, 1 + key], bias.table[row * 3 + column])


def test_patches_begin_two_pixels_before_the_image():
    """Pitfall: padding 2, not 3."""
    stem = Stem(1, 4, 7, 1)
    stem.norm = nn.Identity()
    image = torch.zeros(1, 1, 32, 32, requires_grad=True)
    seen = torch.autograd.grad(stem(image)[0][0, 1, 1].sum(), image)[0][0, 0]
    rows, columns = torch.nonzero(seen, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 8, 2, 8)


@pytest.mark.parametrize('size', [(32, 32), (33, 34), (35, 1), (2, 3)])
def test_every_pixel_is_in_a_patch(size):
    stem = Stem(1, 4, 7, 1).double()
    stem.norm = nn.Identity()
    image = torch.zeros(1, 1, *size, dtype=torch.float64, requires_grad=True)
    out = stem(image)[0]
    assert out.shape[1:3] == tuple(-(-pixels // 4) for pixels in size)
    assert torch.autograd.grad(out[..., 0].sum(), image)[0].ne(0).all()


def test_each_window_begins_with_the_messenger_of_its_place_in_the_region():
    """Without the norm of the patches."""
    stem = Stem(3, 16, 2, 4)
    messengers = stem(torch.randn(2, 3, 40, 72))[1]
    assert messengers.shape == (2, 5, 9, 16)
    for row in range(5):
        for column in range(9):
            number = row % 4 * 4 + column % 4
            assert torch.equal(messengers[:, row, column], stem.messengers[0, number].expand(2, -1))


@pytest.mark.parametrize('size', [(4, 6), (1, 1), (5, 1), (1, 2)])
def test_pixels_and_messengers_share_the_transition(size):
    """Pitfall: one convolution and one norm; zeros at the border of the messengers' map."""
    transition = Transition(4, 6).double()
    x, messengers = torch.randn(2, 4, 9, 7, dtype=torch.float64), torch.randn(2, 4, *size, dtype=torch.float64)
    conv, norm = transition.proj, transition.norm
    for found, given in zip(transition(x, messengers), (x, messengers), strict=True):
        expected = norm(nn.functional.conv2d(given, conv.weight, conv.bias, 2, 1).permute(0, 2, 3, 1))
        torch.testing.assert_close(found, expected)


def test_gradients_of_one_messenger_are_set_in_bfloat16():
    transition = Transition(24, 32)
    for _ in range(20):
        nans = [torch.full((1 << 14, ), float('nan')) for _ in range(3)]
        del nans  # so that memory that is not set holds them
        transition.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            outs = transition(torch.ones(2, 24, 1, 1), torch.ones(2, 24, 2, 1))
        sum(out.float().sin().sum() for out in outs).backward()
        assert transition.proj.weight.grad.isfinite().all()


@pytest.mark.parametrize(('out_type', 'map_norms', 'maps'), [
    ('featmap', (), (0, 1, 2, 3)), ('featmap', (3, ), (0, 1, 2, 8)), ('messengers', (), (4, 5, 6, 7)),
    ('messengers', (3, ), (4, 5, 6, 9))])
def test_all_published_maps(out_type, map_norms, maps):
    """Of pixels and of messengers, which one norm may follow in stage 4."""
    published = golden.load('msgtransformer')['variants']['tiny_w2']
    model = MSGTransformer('tiny', out_type=out_type, map_norms=map_norms, **W2).double().eval()
    model.load_state_dict(convert_state_dict('msgtransformer', golden.state_dict(published)))
    for case in published['cases']:
        outs = model(golden.image(case['input']))
        for out, index in zip(outs, maps, strict=True):
            assert golden.error(out, case['outputs'][index]) < 1e-9


def test_published_classifiers_give_their_scores():
    """Of the messenger alone, through the converter and the ImageNet config."""
    variant = golden.load('msgtransformer')['variants']['tiny_w2']
    published = golden.state_dict(variant)
    published.update({name: golden.parameter(name, shape) for name, shape in {
        'head.weight': [1000, 512], 'head.bias': [1000]}.items()})
    cfg = Config.fromfile(ROOT / 'configs/msgtransformer/msgtransformer_t_imagenet.py')
    cfg.model.backbone.update(W2)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).double().eval()
    backbone = {f'backbone.{name}': tensor for name, tensor in convert_state_dict('msgtransformer', published).items()}
    model.load_state_dict({**backbone, **convert_head('msgtransformer', 'tiny', published)})
    image = golden.image([1, 3, 64, 64])
    expected = variant['cases'][0]['outputs'][9]
    assert golden.error(model.backbone(image)[0], expected) < 1e-9
    scores = model.backbone(image)[0].flatten(1) @ published['head.weight'].T + published['head.bias']
    torch.testing.assert_close(model(image, mode='tensor'), scores)


def test_published_checkpoints_load_as_they_are(tmp_path):
    """With the classifier's norm or without, and with new norms for the maps that have none there."""
    published = golden.state_dict(golden.load('msgtransformer')['variants']['tiny_w2'])
    published |= {'head.weight': torch.zeros(1000, 512), 'head.bias': torch.zeros(1000)}
    path = str(tmp_path / 'published.pth')
    torch.save({'model': published}, path)
    for map_norms, new in (((), ()), ((3, ), ()), ((0, 1, 2, 3), (0, 1, 2))):
        model = MSGTransformer('tiny', map_norms=map_norms, init_cfg=dict(type='Pretrained', checkpoint=path), **W2)
        model.init_weights()
        assert torch.equal(model.stages[0].patch_embed.messengers, published['msg_tokens'].float())
        assert torch.equal(model.stages[1].patch_embed.proj.weight, published['layers.0.downsample.reduction.weight'].float())
        for index in map_norms:
            expected = torch.ones(model.out_channels[index]) if index in new else published['norm.weight'].float()
            assert torch.equal(model.stages[index].norm.weight, expected)


def test_messengers_are_frozen_with_the_stem():
    model = MSGTransformer(SMALL, frozen_stages=0)
    assert not model.stages[0].patch_embed.messengers.requires_grad
    assert model.stages[0].blocks[0].norm1.weight.requires_grad
    assert model.get_layer_depth('stages.0.patch_embed.messengers') == (0, 7)


def test_biases_have_no_weight_decay_and_messengers_have():
    """Pitfall: the published exclusion list misspells the messengers' name."""
    model = MSGTransformer(SMALL)
    names = model.no_weight_decay()
    for index, stage in enumerate(model.stages):
        for block in range(len(stage.blocks)):
            bias = f'stages.{index}.blocks.{block}.attn.position_bias'
            assert {f'{bias}.table', f'{bias}.messenger'} <= names
    assert 'stages.0.patch_embed.messengers' not in names
    keys = Config.fromfile(ROOT / 'configs/msgtransformer/msgtransformer_t_imagenet.py').optim_wrapper.paramwise_cfg.custom_keys
    assert keys == dict(position_bias=dict(decay_mult=0.))


@pytest.mark.parametrize('with_cp', [False, True])
def test_every_parameter_of_the_messengers_has_a_gradient(with_cp):
    """But the last block's table: messengers have no displacements."""
    model = MSGTransformer(SMALL, out_type='messengers', map_norms=(3, ), drop_path_rate=0., with_cp=with_cp)
    outs = model(torch.randn(2, 3, 96, 64))
    assert [tuple(out.shape) for out in outs] == [(2, 16, 8, 6), (2, 16, 4, 3), (2, 24, 2, 2), (2, 32, 1, 1)]
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == ['stages.3.blocks.0.attn.position_bias.table']


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(out_type='cls_token'), "out_type of MSGTransformer must be featmap or messengers, got 'cls_token'"),
    (dict(shuffle_sizes=(3, 2, 2, 1)), 'must be a multiple of the square of its shuffle_sizes, .*, got 16 and 3'),
    (dict(map_norms=(4, )), r"arch\['map_norms'\] of MSGTransformer must be stages among 0, 1, 2, 3, got \(4,\)"),
    (dict(window_size=(7, 7, 7, 7)), r"arch\['window_size'\] .* must be a positive whole number, got \(7, 7, 7, 7\)"),
])
def test_refuses_what_it_cannot_build(arguments, message):
    with pytest.raises(ValueError, match=message):
        MSGTransformer({**SMALL, **arguments} if 'out_type' not in arguments else SMALL,
                       **(arguments if 'out_type' in arguments else {}))


@pytest.mark.parametrize(('arch', 'with_head', 'published'), [
    ('tiny', 25_086_116, 25), ('small', 55_968_514, 56), ('base', 84_392_770, 84)])
def test_parameters_of_classifiers_are_those_published(arch, with_head, published):
    with torch.device('meta'):
        model = MSGTransformer(arch, map_norms=(3, ))
    channels = model.out_channels[-1]
    assert sum(p.numel() for p in model.parameters()) + 1000 * (channels + 1) == with_head
    assert round(with_head / 1e6) == published


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = MSGTransformer(SMALL, depths=(1, 8, 8, 8), map_norms=(3, ))
    for p in model.parameters():
        p.data.fill_(7.)
    model.init_weights()
    for kind in ('qkv.weight', 'proj.weight', 'fc1.weight', 'fc2.weight', 'position_bias.table', 'position_bias.messenger',
                 'patch_embed.messengers'):
        values = torch.cat([p.flatten() for name, p in model.named_parameters() if name.endswith(kind)
                            and 'patch_embed.proj' not in name])
        assert values.std().item() == pytest.approx(0.02, rel=0.2) and values.abs().max() < 2
    for stage in model.stages:
        conv = stage.patch_embed.proj
        bound = conv.weight[0].numel()**-0.5  # of Kaiming's uniform distribution with a = sqrt(5), as of biases
        assert 0.9 * bound < conv.weight.max() < bound and conv.bias.ne(7).all()
        assert all(block.attn.qkv.bias.eq(0).all() and block.ffn.fc2.bias.eq(0).all() for block in stage.blocks)
    assert all(norm.weight.eq(1).all() and norm.bias.eq(0).all() and norm.eps == 1e-5
               for norm in model.modules() if isinstance(norm, nn.LayerNorm))


def test_drop_path_is_of_images_and_grows_over_all_stages():
    model = MSGTransformer('tiny', drop_path_rate=0.3)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.3 * index / 21 for index in range(22)])
    block = MSGTransformer(SMALL, drop_path_rate=0.9, depths=(1, 1, 1, 1)).stages[3].blocks[0].train()
    order = layout(7, 5, 3, 1)
    x = torch.randn(64, 35 + 6, 32)
    kept = block(x, order).ne(x).any(-1)
    assert isinstance(block, Block)
    assert torch.equal(kept.any(1), kept.all(1)) and 0 < kept.any(1).sum() < 64


def test_published_classifiers_are_converted(tmp_path, capsys):
    state = golden.load('msgtransformer')['variants']['tiny']['state']
    state = {**state, 'head.weight': [1000, 512], 'head.bias': [1000]}
    published, converted = str(tmp_path / 'published.pth'), str(tmp_path / 'converted.pth')
    torch.save({'model': {name: torch.ones(1).expand(shape) for name, shape in state.items()}}, published)
    convert(published, converted, 'msgtransformer', with_head=True)
    assert 'MSGTransformer tiny matched' in capsys.readouterr().out
    found = torch.load(converted)['state_dict']
    assert {'backbone.stages.3.norm.weight', 'backbone.stages.0.patch_embed.messengers', 'head.fc.weight'} < found.keys()
    assert not any('index' in name for name in found)
    model = MSGTransformer('tiny', out_indices=(0, ), init_cfg=dict(type='Pretrained', checkpoint=converted))
    model.init_weights()
    assert model.stages[0].patch_embed.messengers.eq(1).all()
