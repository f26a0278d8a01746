"""What is GPViT's own; tests/backbones/test_contract.py holds what every backbone must do."""
from math import cos, pi, sin, sqrt

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmsimvit import CheckpointError, GPViT
from mmsimvit.backbones.gpvit import GroupBlock, LocalBlock
from mmsimvit.cli.convert_checkpoint import convert
from mmsimvit.layers.adapter import Adapter, Extractor, Injector, locate
from tests import golden
from tests.conftest import ROOT

SMALL = dict(embed_dims=36, stem_convs=0, group_tokens=(5, 4, 3, 2), num_heads=12, mlp_ratio=4, adapter_strides=())
ADAPTER = {**SMALL, 'adapter_strides': (4, 8, 16, 32)}


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def randomise(module):
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + values if 'running_var' in name or ('norm' in name and 'weight' in name) else values - 0.5)
    return module.double().eval()


def attend(query, key, value, heads):
    """Tokens ``(N, C)``, head by head."""
    outs = []
    for q, k, v in zip(*(x.chunk(heads, -1) for x in (query, key, value))):
        outs.append((q @ k.T / sqrt(q.shape[1])).softmax(-1) @ v)
    return torch.cat(outs, -1)


def normalise(norm, x, eps):
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, eps)


def convolve(x, weight, bias=None):
    """A depth-wise convolution of ``(H, W, C)``."""
    return F.conv2d(x.permute(2, 0, 1)[None], weight, bias, padding=1, groups=len(weight))[0].permute(1, 2, 0)


def in_stripes(block, x):
    """Each pair of columns for the first half of the channels, each pair of rows for the last."""
    query, key, value = block.attn.qkv(x).chunk(3, -1)
    out, half, heads = torch.empty_like(x), x.shape[-1] // 2, block.attn.num_heads
    for branch, channels in enumerate((slice(half), slice(half, None))):
        conv = block.attn.lepe[branch]
        for start in range(0, x.shape[1 - branch], 2):
            pixels = (slice(start, start + 2), slice(None))[::1 if branch else -1]
            q, k, v = (part[pixels][..., channels] for part in (query, key, value))
            found = attend(*(part.reshape(-1, half) for part in (q, k, v)), heads).view_as(v)
            out[(*pixels, channels)] = found + convolve(v, conv.weight, conv.bias)
    return out


def test_local_blocks_in_words():
    """Norms have an epsilon of 1e-6, LePE stays inside its stripe, and nothing is added to the last convolution."""
    block = randomise(LocalBlock(24, 12, 2, 0.))
    x = 1e-3 * image(6, 8, 24).double()  # so small that epsilons show
    with torch.no_grad():
        y = x + block.attn.proj(in_stripes(block, normalise(block.norm1, x, 1e-6)))
        y = y + block.ffn.fc2(F.gelu(block.ffn.fc1(normalise(block.norm2, y, 1e-6))))
        torch.testing.assert_close(block(x[None])[0], convolve(y, block.conv.weight))


def test_blocks_with_group_tokens_in_words():
    """Norms have an epsilon of 1e-5. Values that are gathered are not projected, and replace the tokens. Nothing is added to
    the last convolution, after which a batch norm and ReLU leave nothing below zero."""
    block = randomise(GroupBlock(24, 6, 2, 5, 0.))
    pixels = 1e-3 * image(6 * 8, 24).double()
    gather, mixer, ungroup = block.gather, block.mixer, block.ungroup
    with torch.no_grad():
        value = normalise(gather.value_norm, pixels, 1e-5)
        groups = attend(normalise(gather.query_norm, block.group_token[0], 1e-5), gather.key(value), value, 6)
        mixed = normalise(mixer.norm1, groups, 1e-5).T
        groups = groups + mixer.tokens.fc2(F.gelu(mixer.tokens.fc1(mixed))).T
        groups = groups + mixer.channels.fc2(F.gelu(mixer.channels.fc1(normalise(mixer.norm2, groups, 1e-5))))
        groups = normalise(ungroup.value_norm, groups, 1e-5)
        query = ungroup.query(normalise(ungroup.query_norm, pixels, 1e-5))
        found = attend(query, ungroup.key(groups), ungroup.value(groups), 6)
        y = ungroup.merge(torch.cat([pixels, ungroup.proj(found)], -1))
        y = y + ungroup.ffn.fc2(F.gelu(ungroup.ffn.fc1(normalise(ungroup.norm2, y, 1e-5))))
        y = convolve(y.view(6, 8, 24), block.conv.weight)
        y = (y - block.norm.running_mean) / (block.norm.running_var + 1e-5).sqrt() * block.norm.weight + block.norm.bias
        out = block(pixels.view(1, 6, 8, 24))[0]
    torch.testing.assert_close(out, y.relu())
    assert out.min() == 0 and mixer.tokens.fc1.out_features == 24 // 2  # half of the channels, not of the tokens


def test_every_third_block_has_group_tokens():
    model = GPViT('l2')
    assert [getattr(block, 'group_token', torch.empty(1, 0)).shape[1] for block in model.blocks] == [
        0, 64, 0, 0, 32, 0, 0, 32, 0, 0, 16, 0]
    assert model.strides == (8, 8, 8, 8) and model.out_channels == (348, ) * 4
    assert [norm.eps for norm in model.norms.values()] == [1e-6] * 4


def test_maps_are_normalised_on_the_side():
    """What the next block takes is the map before the norm."""
    model = randomise(GPViT(SMALL))
    x = image(1, 3, 64, 64).double()
    last = model(x)[3]
    torch.nn.init.zeros_(model.norms['0'].weight)
    assert not (model(x)[0] - model.norms['0'].bias[:, None, None]).any()
    assert torch.equal(model(x)[3], last)


@pytest.mark.parametrize(('size', 'padded'), [((60, 90), (60, 90)), ((1, 1), (16, 16)), ((60, 68), (64, 80)),
                                              ((100, 9), (112, 16)), ((57, 16), (57, 16))], ids=str)
def test_images_are_padded_where_stripes_would_not_fit(size, padded):
    """Not before, as the published code pads the map of the stem in place of the image."""
    model = randomise(GPViT(SMALL))
    x = image(2, 3, *size).double()
    whole = F.pad(x, (0, padded[1] - size[1], 0, padded[0] - size[0]))
    grid = [(length + 7) // 8 for length in padded]
    assert model.patch_embed(whole).shape[1:3] == tuple(grid) and not any(length % 2 for length in grid)
    for a, b in zip(model(x), model(whole), strict=True):
        assert torch.equal(a, b[:, :, :a.shape[2], :a.shape[3]])
        assert a.shape[2:] == tuple((length + 7) // 8 for length in size)


@pytest.mark.parametrize('size', [(1, 1), (33, 64), (70, 100)], ids=str)
def test_the_adapter_pads_to_multiples_of_32(size):
    model = randomise(GPViT(ADAPTER))
    x = image(1, 3, *size).double()
    whole = model(F.pad(x, (0, -size[1] % 32, 0, -size[0] % 32)))
    for a, b, stride in zip(model(x), whole, (4, 8, 16, 32), strict=True):
        assert a.shape[2:] == tuple(-(-length // stride) for length in size)
        assert torch.equal(a, b[:, :, :a.shape[2], :a.shape[3]])


def test_positions_are_resized_bicubically():
    table = GPViT(SMALL).pos_embed
    grid = table.table.view(1, 28, 28, 36).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(6, 40), mode='bicubic', align_corners=False)[0].permute(1, 2, 0)
    torch.testing.assert_close(table(torch.zeros(1, 6, 40, 36))[0], expected)


def test_pixels_look_for_themselves_in_other_maps():
    """The middle of a pixel of stride 16 lies between four of stride 8."""
    places = locate([(2, 3)], (16, ), (8, 16), torch.device('cpu'), torch.float32)
    assert places.shape == (6, 2, 2)
    assert places[:, 1].tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]
    assert places[4, 0].tolist() == [2.5, 2.5]


def test_the_adapter_begins_beside_the_backbone():
    """As injectors' factors are zero at first, the backbone computes as without; the tokens are of three maps."""
    model = GPViT('l1_det', drop_path_rate=0.1)
    assert [len(extractors) for extractors in model.adapter.extractors] == [1, 1, 1, 3]
    assert all(not injector.scale.gamma.any() for injector in model.adapter.injectors)
    assert all(module.drop_path.drop_prob == 0.1 for module in model.modules() if isinstance(module, Extractor))
    assert model.adapter.level_embed.shape == (3, 216) and model.adapter.extractors[0][0].ffn.fc1.out_features == 216 // 4
    injector = Injector(12)
    x, tokens = image(1, 4, 4, 12), image(1, 21, 12)
    shapes = [(4, 4), (2, 2), (1, 1)]
    assert torch.equal(injector(x, tokens, locate(shapes[:1], (8, ), (8, 16, 32), x.device, x.dtype), shapes), x)


def test_three_maps_are_the_last_of_four():
    whole, part = (randomise(GPViT({**SMALL, 'adapter_strides': strides})) for strides in ((4, 8, 16, 32), (8, 16, 32)))
    part.load_state_dict(whole.state_dict(), strict=False)
    x = image(1, 3, 64, 96).double()
    for a, b in zip(whole(x)[1:], part(x), strict=True):
        assert torch.equal(a, b)
    assert part.adapter.up is None and list(part.adapter.prior.projs) == ['8', '16', '32']
    assert list(GPViT(ADAPTER, out_indices=(1, 3)).adapter.prior.projs) == ['8', '16', '32']


def test_one_small_image_is_refused_in_training():
    model = GPViT(ADAPTER)
    with pytest.raises(ValueError, match='one pixel for 32 x 32 of the image, and in training each needs two: take larger'):
        model(image(1, 3, 30, 32))
    assert model(image(2, 3, 30, 32))[3].shape == model.eval()(image(2, 3, 30, 32))[3].shape == (2, 36, 1, 1)
    model.train()
    with pytest.raises(ValueError, match='Expected more than 1 value per channel'):  # what torch would say
        torch.nn.BatchNorm2d(36)(torch.zeros(1, 36, 1, 1))


def test_batch_norms_can_be_synchronised():
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(GPViT(ADAPTER))
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules()) == 1 + 4 + 6 + 4
    assert not any(type(module) is torch.nn.BatchNorm2d for module in model.modules())


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(num_heads=9), 'num_heads must be even, one half for the vertical stripes'),
    (dict(num_heads=10), 'embed_dims must be a multiple of its num_heads, got 36 and 10'),
    (dict(adapter_strides=(4, 8)), r'must be no strides, or 8, 16, 32, or 4, 8, 16, 32, got \(4, 8\)'),
    (dict(stem_convs=-1), 'must be 0 or a positive whole number, got -1')])
def test_refuses_what_it_cannot_build(changes, message):
    with pytest.raises(ValueError, match=message):
        GPViT({**SMALL, **changes})


def published(variant):
    return {name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in golden.state_dict(golden.load('gpvit')['variants'][variant]).items()}


def test_published_checkpoints_of_all_layouts(tmp_path):
    """A classifier's is without the adapter and without the norms of the first three maps, which start anew; a detector's has
    all of it."""
    path = str(tmp_path / 'published.pth')
    init_cfg = dict(type='Pretrained', checkpoint=path)
    segmentor, detector = published('l1'), published('l1_det')
    classifier = {name: tensor for name, tensor in segmentor.items() if not name.startswith('norm')}
    wrapped = {f'backbone.{name}': tensor for name, tensor in classifier.items()}
    torch.save(dict(state_dict={**wrapped, 'neck.group_token': torch.zeros(1, 1, 216), 'head.fc.weight': torch.zeros(9, 216)}),
               path)
    for arch in ('l1', 'l1_det', 'l1_retina'):
        model = GPViT(arch, init_cfg=init_cfg)
        model.init_weights()
        assert torch.equal(model.blocks[4].group_token, classifier['layers.4.group_token'])
        if arch == 'l1':
            assert torch.equal(model.norms['3'].weight, classifier['ln1.weight'])
            assert (model.norms['0'].weight == 1).all()
        else:
            assert model.adapter.injectors[0].attn.offsets.bias.any()
    torch.save(dict(state_dict={f'backbone.{name}': tensor for name, tensor in detector.items()}), path)
    for arch in ('l1_det', 'l1_retina'):
        model = GPViT(arch, init_cfg=init_cfg)
        model.init_weights()
        assert torch.equal(model.adapter.norms['32'].running_var, detector['ad_norm4.running_var'])
        assert torch.equal(model.adapter.extractors[3][2].ffn.fc1.weight,
                           detector['interactions.3.extra_extractors.1.ffn.fc1.weight'])
    torch.save({name: tensor for name, tensor in detector.items() if name != 'interactions.1.injector.gamma'}, path)
    with pytest.raises(CheckpointError, match=r'1 missing \(adapter.injectors.1.scale.gamma\)'):
        GPViT('l1_det', init_cfg=init_cfg).init_weights()


def test_published_heads_fit_our_classifier(tmp_path):
    """A query, without a projection, attends to the pixels of the last map."""
    state_dict = {f'backbone.{name}': tensor for name, tensor in published('l1').items() if not name.startswith('norm')}
    others = {'neck.group_token': [1, 1, 216], 'neck.norm_query.weight': [216], 'neck.norm_query.bias': [216],
              'neck.attn.k_proj.weight': [216, 216], 'head.fc.weight': [1000, 216], 'head.fc.bias': [1000]}
    others = {name: golden.parameter(name, shape).float() for name, shape in others.items()}
    torch.save(dict(state_dict={**state_dict, **others}), tmp_path / 'published.pth')
    convert(str(tmp_path / 'published.pth'), str(tmp_path / 'converted.pth'), 'gpvit', with_head=True)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(Config.fromfile(ROOT / 'configs/gpvit/gpvit_l1_imagenet.py').model).double().eval()
    model.load_state_dict(torch.load(tmp_path / 'converted.pth')['state_dict'])
    x = golden.image([1, 3, 64, 64])
    pixels = model.backbone(x)[0][0].flatten(1).T
    others = {name: tensor.double() for name, tensor in others.items()}
    query = F.layer_norm(others['neck.group_token'][0], (216, ), others['neck.norm_query.weight'],
                         others['neck.norm_query.bias'], 1e-5)
    pooled = attend(query, pixels @ others['neck.attn.k_proj.weight'].T, pixels, 6)
    torch.testing.assert_close(model(x, mode='tensor'), pooled @ others['head.fc.weight'].T + others['head.fc.bias'])


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = GPViT('l1_det')
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.)
    model.init_weights()
    adapter: Adapter = model.adapter
    for module in (*model.blocks.modules(), *(extractor.ffn for extractor in adapter.extractors[3])):
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05) and not module.bias.any()
        elif isinstance(module, torch.nn.Conv2d):  # torch's own
            assert module.weight.abs().max().item() == pytest.approx(1 / 3, rel=0.02)
    for parameter in (model.blocks[1].group_token, model.pos_embed.table):
        assert parameter.std().item() == pytest.approx(0.02, rel=0.05)
    assert adapter.level_embed.std().item() == pytest.approx(1, rel=0.1)
    for conv, fan_out in ((adapter.prior.convs[1][0], 9 * 256), (adapter.prior.projs['8'], 216), (adapter.up, 4 * 216),
                          (adapter.extractors[0][0].ffn.dwconv, 9)):
        assert conv.weight.std().item() == pytest.approx(sqrt(2 / fan_out), rel=0.05)
        assert conv.bias is None or not conv.bias.any()
    attn = adapter.injectors[2].attn
    assert not any(parameter.any() for parameter in (attn.offsets.weight, *attn.weights.parameters(), attn.value.bias))
    assert attn.value.weight.abs().max().item() == pytest.approx(sqrt(6 / (2 * 216)), rel=0.01)
    ring = attn.offsets.bias.view(6, 3, 4, 2)
    for head in range(6):
        x, y = cos(head * pi / 3), sin(head * pi / 3)
        scale = max(abs(x), abs(y))
        for point in range(4):
            expected = [(point + 1) * x / scale, (point + 1) * y / scale]
            assert ring[head, 1, point].tolist() == pytest.approx(expected, abs=1e-5)
