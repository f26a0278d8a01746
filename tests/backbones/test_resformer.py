"""What is ResFormer's own, and what plain backbones have in common; tests/backbones/test_contract.py holds what every backbone
must do."""
from math import cos, pi, sin

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmsimvit import CheckpointError, ResFormer
from mmsimvit.backbones.resformer import Attention, GlobalPosition, LocalPosition, WindowAttention
from mmsimvit.cli.convert_checkpoint import convert
from tests import golden
from tests.conftest import ROOT

SMALL = dict(embed_dims=24, depth=3, num_heads=3, mlp_ratio=2, window_sizes=None)


def published(variant):
    return {name: tensor.float() for name, tensor in golden.state_dict(golden.load('resformer')['variants'][variant]).items()}


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def randomise(model):
    """Other numbers than zeros for local positions and biases."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize('variant', ['tiny', 'tiny_rect'])
def test_class_token_is_the_published(variant):
    model = ResFormer('tiny', out_type='cls_token').double().eval()
    known = golden.load('resformer')['variants'][variant]
    model.load_state_dict(ResFormer.published.convert(golden.state_dict(known)))
    for case in known['cases']:
        with torch.no_grad():
            token, = model(golden.image(case['input']))
        assert golden.error(token, case['outputs'][1]) < 1e-9


def test_global_positions_count_from_one_and_are_relative_to_the_size():
    embed = GlobalPosition(8).double()
    seen = []
    embed.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    for height, width in ((1, 1), (3, 5), (40, 2)):
        embed(torch.zeros(1, height, width, 8).double())
        expected = torch.zeros(8, height, width).double()
        for y in range(height):
            for x in range(width):
                for c in range(4):
                    period = 10000**(2 * (c // 2) / 4)
                    wave = cos if c % 2 else sin
                    expected[c, y, x] = wave(2 * pi * (y + 1) / (height + 1e-6) / period)
                    expected[4 + c, y, x] = wave(2 * pi * (x + 1) / (width + 1e-6) / period)
        torch.testing.assert_close(seen.pop(), expected, rtol=0, atol=1e-12)


def test_global_positions_are_added_after_a_convolution_with_zeros_around():
    torch.manual_seed(0)
    embed = GlobalPosition(8).double()
    x = torch.randn(2, 3, 5, 8).double()
    rows, columns = (embed.make_waves(length, x.device) for length in (3, 5))
    waves = torch.cat([rows[:, None].repeat(1, 5, 1), columns[None].repeat(3, 1, 1)], -1).permute(2, 0, 1)
    waves = F.pad(waves, (1, 1, 1, 1))
    expected = embed.conv.bias[:, None, None] + sum(
        embed.conv.weight[:, 0, i, j, None, None] * waves[:, i:i + 3, j:j + 5] for i in range(3) for j in range(3))
    torch.testing.assert_close(embed(x) - x, expected.permute(1, 2, 0).expand(2, -1, -1, -1))


def test_waves_are_never_of_low_precision():
    torch.manual_seed(0)
    embed = GlobalPosition(64)
    whole = embed.make_waves(80, torch.device('cpu'))
    assert torch.equal(embed.to(torch.bfloat16).make_waves(80, torch.device('cpu')), whole)
    # Rounding the angles to bfloat16 would move the last by up to 0.02.
    out = embed(torch.zeros(1, 80, 80, 64, dtype=torch.bfloat16))
    torch.testing.assert_close(out.float(), embed.float()(torch.zeros(1, 80, 80, 64)), rtol=0.02, atol=0.01)


def test_attention_is_the_published():
    """Local positions of the values, head by head with the same kernels; none at the class token."""
    torch.manual_seed(0)
    attention = randomise(Attention(12, 3)).double()
    x = torch.randn(2, 1 + 4 * 5, 12).double()
    query, key, value = attention.qkv(x).split(12, -1)
    heads = []
    for head in range(3):
        q, k, v = (part[..., 4 * head:4 * head + 4] for part in (query, key, value))
        out = (q @ k.transpose(1, 2) / 2).softmax(-1) @ v
        pixels = v[:, 1:].transpose(1, 2).unflatten(2, (4, 5))
        local = F.conv2d(pixels, attention.local.weight, attention.local.bias, padding=1, groups=4).flatten(2).transpose(1, 2)
        heads.append(torch.cat([out[:, :1], out[:, 1:] + local], 1))
    torch.testing.assert_close(attention(x, 4, 5), attention.proj(torch.cat(heads, -1)))


def test_windows_are_padded_before_attention_as_in_vitdet():
    """Zeros of the padding become keys and values, the biases of these, which all tokens of a window see."""
    torch.manual_seed(0)
    attention = randomise(WindowAttention(12, 3, 4)).double()
    x = torch.randn(2, 5 * 7, 12).double()
    padded = F.pad(x.view(2, 5, 7, 12), (0, 0, 0, 1, 0, 3))
    plain = Attention(12, 3, has_cls_token=False).double()
    plain.load_state_dict(attention.state_dict())
    expected = torch.zeros(2, 8, 8, 12).double()
    for i in (0, 4):
        for j in (0, 4):
            window = padded[:, i:i + 4, j:j + 4].flatten(1, 2)
            expected[:, i:i + 4, j:j + 4] = plain(window, 4, 4).view(2, 4, 4, 12)
    torch.testing.assert_close(attention(x, 5, 7), expected[:, :5, :7].flatten(1, 2))


def test_windows_of_the_whole_map_differ_by_the_class_token_alone():
    torch.manual_seed(0)
    whole = randomise(ResFormer(SMALL, window_sizes=(None, ) * 3)).double().eval()
    window = ResFormer(SMALL, window_sizes=(4, 4, 4)).double().eval()
    window.load_state_dict(whole.state_dict())
    assert 'cls_token' not in whole.state_dict() and window.feature_info == whole.feature_info
    torch.testing.assert_close(window(image(1, 3, 64, 64).double())[0], whole(image(1, 3, 64, 64).double())[0])
    model = randomise(ResFormer(SMALL)).double().eval()
    missing = model.load_state_dict(whole.state_dict(), strict=False).missing_keys
    assert missing == ['cls_token']
    assert (model(image(1, 3, 64, 64).double())[0] - whole(image(1, 3, 64, 64).double())[0]).abs().max() > 1e-3


def test_published_weights_do_for_windows(tmp_path):
    """Their class token is left out."""
    torch.save(dict(model=published('tiny')), tmp_path / 'published.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pth'))
    model = ResFormer('tiny', window_sizes=(14, 14, None) * 4, init_cfg=init_cfg)
    model.init_weights()
    assert torch.equal(model.norms['11'].bias, published('tiny')['norm.bias']) and model.find_variant() == 'tiny'


def test_a_block_has_one_set_of_kernels():
    assert LocalPosition(64).weight.shape == (64, 1, 3, 3)
    with torch.device('meta'):
        assert {block.attn.local.weight.shape for block in ResFormer('base').blocks} == {(64, 1, 3, 3)}


def test_a_fresh_model_sees_places_by_global_positions_alone():
    """Local positions begin with zeros: without the global ones too, patches in another order give the same class token."""
    torch.manual_seed(0)
    model = ResFormer(SMALL, out_type='cls_token')
    model.init_weights()
    model.double().eval()
    x = image(1, 3, 64, 64).double()
    moved = torch.cat([x[..., 32:], x[..., :32]], -1)

    def differs():
        return (model(x)[0] - model(moved)[0]).abs().max() > 1e-9

    assert differs()
    for parameter in model.pos_embed.parameters():
        parameter.data.zero_()
    assert not differs()
    for block in model.blocks:
        block.attn.local.weight.data.normal_()
    assert differs()


def test_last_local_positions_are_in_the_map_and_not_in_the_class_token():
    outs = {}
    for out_type in ('cls_token', 'featmap'):
        torch.manual_seed(0)
        model = randomise(ResFormer(SMALL, out_type=out_type)).eval()
        before = model(image(1, 3, 64, 64))[0]
        model.blocks[-1].attn.local.bias.data += 1
        outs[out_type] = torch.equal(before, model(image(1, 3, 64, 64))[0])
    assert outs == dict(cls_token=True, featmap=False)


def test_small_images_are_padded_at_the_bottom_and_right():
    torch.manual_seed(0)
    model = randomise(ResFormer(SMALL)).double().eval()
    for height, width in ((1, 1), (17, 31), (33, 48)):
        x = image(1, 3, height, width).double()
        padded = F.pad(x, (0, -width % 16, 0, -height % 16))
        assert torch.equal(model(x)[0], model(padded)[0])


def test_out_indices_are_blocks():
    model = ResFormer(SMALL, out_indices=(0, 2))
    assert ResFormer(SMALL).out_indices == (2, ) and ResFormer(SMALL, out_indices=1).out_indices == (1, )
    assert model.feature_info == ((24, 16), (24, 16))
    first, last = (out.transpose(0, 1).flatten(1) for out in randomise_norm(model)(image(2, 3, 64, 64)))
    assert last.mean(0).abs().max() < 1e-5 < first.mean(0).abs().max()  # the last is normalised
    cut = ResFormer(SMALL, out_indices=(0, 1))
    assert len(cut.blocks) == 2 and not list(cut.norms)
    with pytest.raises(ValueError, match=r'out_indices must be among 0, 1, 2, ascending, got \(-1,\)'):
        ResFormer(SMALL, out_indices=(-1, ))


def randomise_norm(model):
    model.blocks[0].ffn.fc2.bias.data += 1
    return model


def test_class_tokens_give_every_parameter_a_gradient():
    """That of the last local positions is zero, but there: distributed training waits for it."""
    model = ResFormer(SMALL, out_type='cls_token')
    model(image(2, 3, 64, 64))[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert without == ['blocks.2.attn.local.weight', 'blocks.2.attn.local.bias']


def test_every_chosen_class_token_is_given():
    model = ResFormer(SMALL, out_indices=(0, 2), out_type='cls_token')
    outs = model(image(2, 3, 64, 96))
    assert [tuple(out.shape) for out in outs] == [(2, 24), (2, 24)] and model.out_channels == (24, 24)


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(out_type='avg_featmap'), "out_type of ResFormer must be featmap or cls_token or raw, got 'avg_featmap'"),
    (dict(embed_dims=25), 'embed_dims must be a multiple of its num_heads, got 25 and 3'),
    (dict(embed_dims=27), 'embed_dims must be even, one half for the waves of rows.*, got 27'),
    (dict(window_sizes=(14, None)), r'window_sizes must be one for each of the 3 blocks \(depth\), got 2: \(14, None\)'),
    (dict(window_sizes=(14, None, 14), out_type='cls_token'), "out_type of ResFormer must be featmap, got 'cls_token'"),
    (dict(depth=0), r"arch\['depth'\] of ResFormer must be a positive whole number, got 0"),
])
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResFormer(SMALL, **arguments)


def test_stem_is_frozen_before_blocks():
    model = ResFormer(SMALL, frozen_stages=0)
    frozen = {name.partition('.')[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {'cls_token', 'patch_embed', 'pos_embed'}
    model = ResFormer(SMALL, frozen_stages=3)
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.norms['2'].training


def test_drop_path_rates_are_those_of_the_whole():
    rates = [block.drop_path.drop_prob for block in ResFormer('tiny', out_indices=(5, ), drop_path_rate=0.11).blocks]
    assert rates == pytest.approx([0.01 * index for index in range(6)])


def test_published_classifiers_load_as_they_are_and_converted(tmp_path):
    state_dict = {**published('tiny'), 'head.weight': torch.randn(1000, 192), 'head.bias': torch.randn(1000)}
    torch.save(dict(model=state_dict), tmp_path / 'published.pth')
    convert(str(tmp_path / 'published.pth'), str(tmp_path / 'converted.pth'), 'resformer')
    for name in ('published.pth', 'converted.pth'):
        for arguments in (dict(), dict(out_indices=(2, 5, 8, 11)), dict(out_indices=(3, ))):
            model = ResFormer('tiny', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / name)), **arguments)
            model.init_weights()
            assert torch.equal(model.cls_token, state_dict['cls_token'])
            assert torch.equal(model.pos_embed.conv.bias, state_dict['pos_embed.embed_layer.bias'])
            assert torch.equal(model.blocks[3].attn.local.weight, state_dict['blocks.3.attn.get_v.weight'])
        assert '11' not in model.norms
    del state_dict['blocks.4.attn.get_v.bias'], state_dict['norm.weight']
    torch.save(state_dict, tmp_path / 'cut.pth')
    with pytest.raises(CheckpointError, match=r'2 missing \(blocks.4.attn.local.bias, norms.11.weight\)'):
        ResFormer('tiny', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'cut.pth'))).init_weights()


@pytest.mark.parametrize(('name', 'millions'), [
    ('maskrcnn_resformer_small_coco_3x', 45.6), ('maskrcnn_resformer_base_coco_3x', 115.3),
    ('upernet_resformer_small_ade20k', 51.7), ('upernet_resformer_base_ade20k', 119.8)])
def test_dense_models_have_the_published_number_of_parameters(name, millions):
    cfg = Config.fromfile(ROOT / f'configs/resformer/{name}.py')
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_published_heads_fit_our_classifier(tmp_path):
    """What is converted with its head scores as the published: a linear layer of the class token."""
    state_dict = {**published('tiny'), 'head.weight': golden.parameter('head.weight', [1000, 192]).float(),
                  'head.bias': golden.parameter('head.bias', [1000]).float()}
    torch.save(state_dict, tmp_path / 'published.pth')
    convert(str(tmp_path / 'published.pth'), str(tmp_path / 'converted.pth'), 'resformer', with_head=True)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(Config.fromfile(ROOT / 'configs/resformer/resformer_tiny_imagenet.py').model).eval()
    model.load_state_dict(torch.load(tmp_path / 'converted.pth')['state_dict'])
    token = model.double().backbone(golden.image([1, 3, 64, 64]))[0]
    expected = token @ state_dict['head.weight'].double().T + state_dict['head.bias'].double()
    torch.testing.assert_close(model(golden.image([1, 3, 64, 64]), mode='tensor'), expected)


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = ResFormer('tiny')
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.)
    model.init_weights()
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.15) and model.cls_token.abs().max() < 0.1
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.02) and not module.bias.any()
        elif isinstance(module, LocalPosition):
            assert not module.weight.any() and not module.bias.any()
        elif isinstance(module, torch.nn.Conv2d):  # torch's own
            assert module.weight.std().item() == pytest.approx((1 / (3 * module.weight[0].numel()))**0.5, rel=0.05)
            assert module.bias.any()
        elif isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any() and module.eps == 1e-6
