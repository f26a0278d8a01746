"""The simple feature pyramid against its definition, and in both libraries."""
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope

from mmsimvit import SimpleFeaturePyramid
from tests.conftest import exports

PLAIN = dict(embed_dims=16, depth=2, num_heads=2, mlp_ratio=2, patch_size=8, grid=(4, 4), windows=(2, 1))


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def normalise(x, norm):
    """Each pixel's channels."""
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def double(x, conv):
    """A transposed 2 x 2 convolution with stride 2: a pixel becomes four, none of which any other pixel reaches."""
    pixels = torch.einsum('bchw,cdij->bdhiwj', x, conv.weight)
    return pixels.flatten(4, 5).flatten(2, 3) + conv.bias[:, None, None]


def halve(x):
    """The largest of each 2 x 2, or of what there is of it."""
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf)
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))


def plain_pyramid(neck, x, stride):
    outs = []
    for level, target in zip(neck.levels, (4, 8, 16, 32)):
        out, layers = x, list(level)
        transposed = [layer for layer in layers if isinstance(layer, torch.nn.ConvTranspose2d)]
        for index, conv in enumerate(transposed):
            if index:
                out = F.gelu(normalise(out, layers[3 * index - 2]))
            out = double(out, conv)
        for _ in range((target // stride).bit_length() - 1):
            out = halve(out)
        lateral, first, conv, second = layers[-4:]
        out = normalise(torch.einsum('bchw,dc->bdhw', out, lateral.weight[:, :, 0, 0]), first)
        outs.append(normalise(F.conv2d(F.pad(out, (1, 1, 1, 1)), conv.weight), second))
        assert lateral.bias is None and conv.bias is None
    return [*outs, outs[-1][:, :, ::2, ::2], outs[-1][:, :, ::4, ::4]]


@pytest.mark.parametrize('stride', [4, 8, 16, 32])
@pytest.mark.parametrize('size', [(8, 4), (5, 7), (1, 1), (1, 6)])
def test_is_the_definition(stride, size):
    torch.manual_seed(0)
    neck = SimpleFeaturePyramid(16, stride, out_channels=6, num_outs=6).double()
    for parameter in neck.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = image(2, 16, *size).double()
    outs = neck([x])
    for out, expected in zip(outs, plain_pyramid(neck, x, stride), strict=True):
        torch.testing.assert_close(out, expected)
    assert outs[0].shape[2:] == tuple(length * stride // 4 for length in size)
    for out, after in pairwise(outs):
        assert after.shape[2:] == tuple(-(-length // 2) for length in out.shape[2:])


def test_parameters_are_those_of_vitdet():
    """For 768 channels of stride 16: a half, a quarter and two whole."""
    neck = SimpleFeaturePyramid(768)
    deconvolutions = 2 * (4 * 768 * 384 + 384) + (4 * 384 * 192 + 192) + 2 * 384
    lateral = 256 * (192 + 384 + 768 + 768)
    assert sum(p.numel() for p in neck.parameters()) == deconvolutions + lateral + 4 * (9 * 256 * 256 + 4 * 256)


def test_channels_may_be_kept():
    neck = SimpleFeaturePyramid(16, halves_channels=False, out_channels=8)
    assert [level[-4].in_channels for level in neck.levels] == [16] * 4
    assert [level[-4].in_channels for level in SimpleFeaturePyramid(16, out_channels=8).levels] == [4, 8, 16, 16]
    x = image(1, 16, 3, 5)
    for out, expected in zip(neck([x]), plain_pyramid(neck, x, 16)):
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('start_level', [1, 3])
def test_begins_with_a_later_map(start_level):
    torch.manual_seed(0)
    whole = SimpleFeaturePyramid(16, out_channels=8, num_outs=6)
    neck = SimpleFeaturePyramid(16, out_channels=8, num_outs=6 - start_level, start_level=start_level)
    neck.levels.load_state_dict(whole.levels[start_level:].state_dict())
    x = image(1, 16, 5, 7)
    torch.testing.assert_close(neck([x]), whole([x])[start_level:], rtol=0, atol=0)


@pytest.mark.parametrize('eps', [1e-6, 0.1])
def test_heads_of_the_libraries_take_the_norm(eps):
    from mmcv.cnn import ConvModule
    conv = ConvModule(4, 8, 3, norm_cfg=dict(type='ChannelNorm', eps=eps), act_cfg=None)
    x = image(2, 4, 5, 6)
    x = F.conv2d(x, conv.conv.weight)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(conv(image(2, 4, 5, 6)), expected)


def test_every_parameter_has_a_gradient():
    neck = SimpleFeaturePyramid([16], 16, out_channels=8, num_outs=4)
    outs = neck((image(2, 16, 5, 7), ))
    sum((out * torch.rand_like(out)).sum() for out in outs).backward()
    assert len(outs) == 4 and all(p.grad is not None and p.grad.any() for p in neck.parameters())


@pytest.mark.parametrize(('scope', 'head'), [
    ('mmdet', dict(type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1)),
    ('mmseg', dict(type='UPerHead', num_classes=3, in_channels=[8] * 4, in_index=[0, 1, 2, 3], channels=8,
                   norm_cfg=dict(type='BN')))])
def test_takes_the_map_of_a_plain_backbone_to_heads(scope, head):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(dict(type='UViT', arch=PLAIN))
        neck = MODELS.build(dict(type='SimpleFeaturePyramid', in_channels=backbone.out_channels, stride=backbone.strides[0],
                                 out_channels=8, num_outs=4 if scope == 'mmseg' else 5))
        head = MODELS.build(head)
    for model in (backbone, neck):
        model.init_weights()
    outs = head(neck(backbone(image(2, 3, 75, 130))))
    first = outs[0][0] if scope == 'mmdet' else outs
    assert first.shape[2:] == (20, 34)  # of ten by seventeen patches
    first.square().sum().backward()
    assert backbone.patch_embed.proj.weight.grad.any()


def test_initialisation_is_that_of_fpn():
    neck = SimpleFeaturePyramid(64, out_channels=64)
    neck.init_weights()
    for module in neck.modules():
        if isinstance(module, torch.nn.Conv2d):
            area = module.kernel_size[0]**2
            bound = (6 / (area * (module.in_channels + module.out_channels)))**0.5
            assert 0.95 * bound < module.weight.abs().max() <= bound
        elif isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any() and module.eps == 1e-6


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(in_channels=[8, 8]), r'in_channels must be those of one map, got \[8, 8\]'),
    (dict(stride=14), r'stride must be among \(4, 8, 16, 32\), got 14'),
    (dict(num_outs=3), 'num_outs must be at least 4, got 3'),
    (dict(num_outs=2, start_level=1), 'num_outs must be at least 3, got 2'),
    (dict(start_level=4), 'start_level must be 0 to 3, got 4'),
])
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimpleFeaturePyramid(**{'in_channels': 8, **arguments})


def test_refuses_several_maps():
    with pytest.raises(ValueError, match='SimpleFeaturePyramid takes one map, got 2; a plain backbone gives one with'):
        SimpleFeaturePyramid(8)([image(1, 8, 4, 4)] * 2)


@exports
@pytest.mark.full
def test_traces_hold_for_other_sizes():
    neck = SimpleFeaturePyramid(8, 16, out_channels=8).eval()
    dims = {2: torch.export.Dim('height', min=5, max=128), 3: torch.export.Dim('width', min=5, max=128)}
    with torch.no_grad():
        exported = torch.export.export(neck, ([image(1, 8, 6, 9)], ), dynamic_shapes=([dims], )).module()
        for size in ((5, 5), (6, 12), (17, 8)):
            for a, b in zip(exported([image(1, 8, *size)]), neck([image(1, 8, *size)]), strict=True):
                torch.testing.assert_close(a, b)
