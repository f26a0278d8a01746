"""What is CvT's own; tests/backbones/test_contract.py holds what every backbone must do."""
import pytest
import torch
import torch.nn.functional as F

from mmsimvit import CheckpointError, CvT
from mmsimvit.backbones.cvt import FFN, Attention, ConvProjection
from mmsimvit.cli.convert_checkpoint import convert
from mmsimvit.engine.fsdp import wrap_blocks
from mmsimvit.layers import ConvEmbed
from tests import golden

SMALL = dict(embed_dims=(8, 16, 24), depths=(1, 2, 2), num_heads=(1, 2, 3), mlp_ratios=(2, 2, 2), map_norms=())


@pytest.mark.parametrize(('size', 'expected'), [
    ((224, 224), [(56, 56), (28, 28), (14, 14)]),
    ((90, 75), [(22, 19), (11, 10), (6, 5)]),
    ((17, 18), [(4, 4), (2, 2), (1, 1)]),
    ((800, 1333), [(200, 333), (100, 167), (50, 84)]),
    ((3, 7), [(1, 2), (1, 1), (1, 1)]),
    ((1, 2), [(1, 1), (1, 1), (1, 1)]),  # padded to a patch, which the published code does not take
])
def test_maps_have_the_published_sizes(size, expected):
    with torch.device('meta'):
        outs = CvT(SMALL).eval()(torch.empty(1, 3, *size))
    assert [tuple(out.shape[2:]) for out in outs] == expected


def test_patches_of_the_stem_begin_two_pixels_before_the_image():
    embed = ConvEmbed(1, 4, 7, 4, 2)
    embed.norm = torch.nn.Identity()
    pixel = torch.zeros(1, 1, 16, 16, requires_grad=True)
    seen = torch.autograd.grad(embed(pixel)[0, 1, 1].sum(), pixel)[0][0, 0]
    rows, columns = torch.nonzero(seen, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 8, 2, 8)


def test_attention_is_the_published():
    """Logits are divided by the root of all channels; the class token is asked and answers, without convolution and norm."""
    torch.manual_seed(0)
    attention = Attention(8, 2, has_token=True).double().eval()
    for part in (attention.q, attention.k, attention.v):
        part.norm.running_mean.normal_()
        part.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 1 + 5 * 4, 8).double()
    pixels = x[:, 1:].transpose(1, 2).unflatten(2, (5, 4))
    parts = []
    for part, stride in ((attention.q, 1), (attention.k, 2), (attention.v, 2)):
        y = F.conv2d(pixels, part.conv.weight, None, stride, 1, groups=8).flatten(2).transpose(1, 2)
        y = (y - part.norm.running_mean) / (part.norm.running_var + 1e-5).sqrt() * part.norm.weight + part.norm.bias
        y = part.linear(torch.cat([x[:, :1], y], 1))
        parts.append(y.unflatten(2, (2, 4)).transpose(1, 2))
    query, key, value = parts
    assert query.shape[2] == 21 and key.shape[2] == value.shape[2] == 1 + 3 * 2
    weights = (query @ key.transpose(2, 3) / 8**0.5).softmax(-1)
    expected = attention.proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, 5, 4), expected)


def test_activation_is_the_approximate_gelu():
    ffn = FFN(6, 6).double()
    for layer in (ffn.fc1, ffn.fc2):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.linspace(-4, 4, 6).double()
    torch.testing.assert_close(ffn(x), x * torch.sigmoid(1.702 * x))


def test_norms_of_projections_see_each_pixel_once_and_no_class_token():
    projection = ConvProjection(8, stride=2)
    x = torch.randn(2, 8, 6, 4)
    projection(x, torch.full((2, 1, 8), 1e6))
    y = projection.conv(x)
    torch.testing.assert_close(projection.norm.running_mean, 0.1 * y.mean((0, 2, 3)))
    assert projection.norm.num_batches_tracked == 1


def test_class_token_is_in_the_last_stage_and_changes_its_map_alone():
    torch.manual_seed(0)
    model = CvT(SMALL).eval()
    assert [name for name, _ in model.named_parameters() if 'cls_token' in name] == ['stages.2.cls_token']
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    model.stages[2].cls_token.data.normal_()
    same = [torch.equal(a, b) for a, b in zip(before, model(x), strict=True)]
    assert same == [True, True, False]
    assert 'stages.2.cls_token' not in CvT(SMALL, out_indices=(0, 1)).state_dict()


def test_class_token_is_frozen_with_its_stage():
    assert CvT(SMALL, frozen_stages=2).stages[2].cls_token.requires_grad
    assert not CvT(SMALL, frozen_stages=3).stages[2].cls_token.requires_grad
    names = ['stages.2.cls_token', 'norm.weight', 'head.bias']
    assert CvT(SMALL).claim(names) == names[:1]


def test_published_classifiers_load_as_they_are_and_converted(tmp_path):
    state_dict = {name: tensor.float() for name, tensor in golden.state_dict(golden.load('cvt')['variants']['13']).items()}
    torch.save(state_dict, tmp_path / 'published.pth')
    convert(str(tmp_path / 'published.pth'), str(tmp_path / 'converted.pth'), 'cvt')
    for name in ('published.pth', 'converted.pth'):
        model = CvT('13', map_norms=(0, 1, 2), init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / name)))
        model.init_weights()
        assert torch.equal(model.stages[2].cls_token, state_dict['stage2.cls_token'])
        query = model.stages[2].blocks[9].attn.q
        assert torch.equal(query.norm.running_var, state_dict['stage2.blocks.9.attn.conv_proj_q.bn.running_var'])
        assert torch.equal(query.linear.weight, state_dict['stage2.blocks.9.attn.proj_q.weight'])
        assert all((stage.norm.weight == 1).all() for stage in model.stages)  # which begin as they are drawn
    with pytest.raises(CheckpointError, match='cvt 13 is another than in our ImageNet config'):
        convert(str(tmp_path / 'published.pth'), str(tmp_path / 'head.pth'), 'cvt', with_head=True)
    del state_dict['stage2.cls_token']
    torch.save(state_dict, tmp_path / 'cut.pth')
    with pytest.raises(CheckpointError, match='1 missing .stages.2.cls_token'):
        CvT('13', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'cut.pth'))).init_weights()


def test_numbers_name_variants_as_texts_do():
    with torch.device('meta'):
        assert CvT(21).arch == CvT('21').arch == CvT.arch_zoo['21']
    with pytest.raises(ValueError, match="CvT has no arch '14'; it has 13, 21, w24"):
        CvT(14)


def test_drop_path_is_in_the_last_stage():
    rates = [[block.drop_path.drop_prob for block in stage.blocks] for stage in CvT('21', drop_path_rate=0.3).stages]
    assert rates[:2] == [[0], [0] * 4]
    assert rates[2] == pytest.approx([0.3 * index / 15 for index in range(16)])


def test_maps_have_norms_where_they_are_named():
    model = CvT(SMALL, map_norms=(0, 2))
    assert [stage.norm is not None for stage in model.stages] == [True, False, True]
    first, second, third = (out.transpose(0, 1).flatten(1) for out in model(torch.randn(1, 3, 64, 64)))
    assert first.mean(0).abs().max() < 1e-5 < second.mean(0).abs().max() and third.mean(0).abs().max() < 1e-5


def test_batch_norms_lie_in_the_units_of_fsdp():
    model = CvT(SMALL)
    assert wrap_blocks(model, recurse=True, nonwrapped_numel=0)
    units = [module for module in model.modules() if wrap_blocks(module, recurse=False, nonwrapped_numel=0)]
    inside = {id(norm) for unit in units for norm in unit.modules() if isinstance(norm, torch.nn.BatchNorm2d)}
    assert len(units) == 5 and len(inside) == sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()) == 15


def test_published_weight_decay_leaves_out_all_norms_by_name():
    model = CvT(SMALL)
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm2d)):
            assert 'norm' in name.rpartition('.')[2], name


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = CvT('13')
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.)
    model.init_weights()
    linear = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Linear)])
    assert linear.std().item() == pytest.approx(0.02, rel=0.01)
    assert model.stages[2].cls_token.std().item() == pytest.approx(0.02, rel=0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert not module.bias.any()
        elif isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 3000:  # torch's own
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((1 / (3 * fan_in))**0.5, rel=0.05)
        elif isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm2d)):
            assert (module.weight == 1).all() and not module.bias.any()
