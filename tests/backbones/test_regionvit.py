"""What is RegionViT's own; tests/backbones/test_contract.py holds what every backbone must do."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmsimvit import CheckpointError, RegionViT
from mmsimvit.backbones.regionvit import Layout, PositionBias, RegionalEmbed
from mmsimvit.cli.convert_checkpoint import convert
from mmsimvit.weights import find_arch
from tests import golden

GOLDEN = golden.load('regionvit')
SMALL, SMALL_PEG = (row['arch'] for row in GOLDEN['small'].values())


class Plain:
    """The publication's steps, one by one, with a backbone's parameters: windows with all padding, masked as published."""

    def __init__(self, model):
        self.model = model
        self.size = model.arch['window_size']

    def __call__(self, image):
        model, outs = self.model, []
        stem = model.stages[0].patch_embed
        regions, x = self.embed_regions(image, stem.regional), stem.local(image)
        for index, stage in enumerate(model.stages):
            if index:
                x, regions = (self.transition(y, stage.patch_embed) for y in (x, regions))
            x, regions = self.run_blocks(stage.blocks, x, regions)
            if stage.norm is not None:
                x = self.norm(x, stage.norm, 1e-5)
            outs.append(x)
        return outs

    def embed_regions(self, image, conv):
        size = 4 * self.size
        height, width = image.shape[2:]
        if height % size or width % size:
            rows, columns = size - height % size, size - width % size
            image = F.pad(image, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(image, conv.weight, conv.bias, size)

    def norm(self, x, norm, eps):
        mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        return (x - mean) / (var + eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]

    def transition(self, x, transition):
        conv = transition.proj
        return F.conv2d(F.gelu(self.norm(x, transition.norm, 1e-5)), conv.weight, conv.bias, 2, 1, groups=x.shape[1])

    def run_blocks(self, blocks, x, regions):
        size, (height, width), (rows, columns) = self.size, x.shape[2:], regions.shape[2:]
        padding = 0, columns * size - width, 0, rows * size - height
        x = F.pad(x, padding)
        for block in blocks:
            x, regions = self.run_block(block, x, regions, height, width)
            if block.peg is not None:
                x, regions = (y + F.conv2d(y, block.peg.weight, None, 1, 1, groups=y.shape[1])
                              for y in (x[:, :, :height, :width], regions))
                x = F.pad(x, padding)
        return x[:, :, :height, :width], regions

    def run_block(self, block, x, regions, height, width):
        size, (rows, columns), dims = self.size, regions.shape[2:], x.shape[1:2]
        flat = regions.flatten(2).transpose(1, 2)
        flat = flat + self.attend(F.layer_norm(flat, dims, block.norm0.weight, block.norm0.bias, 1e-6), block.attn)
        local = x.unflatten(2, (rows, size)).unflatten(4, (columns, size)).permute(0, 2, 4, 3, 5, 1)
        tokens = torch.cat([flat[:, :, None], local.flatten(3, 4).flatten(1, 2)], 2)
        normed = F.layer_norm(tokens, dims, block.norm1.weight, block.norm1.bias, 1e-6)
        tokens = tokens + torch.stack([
            self.attend(normed[:, index], block.attn, self.bias(block.attn), self.allowed(
                index // columns, index % columns, rows, columns, height, width)) for index in range(rows * columns)], 1)
        normed = F.layer_norm(tokens, dims, block.norm2.weight, block.norm2.bias, 1e-6)
        tokens = tokens + block.ffn.fc2(F.gelu(block.ffn.fc1(normed)))
        x = tokens[:, :, 1:].unflatten(1, (rows, columns)).unflatten(3, (size, size)).permute(0, 5, 1, 3, 2, 4)
        return x.flatten(4, 5).flatten(2, 3), tokens[:, :, 0].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)

    def bias(self, attention):
        size = self.size
        table, bias = attention.position_bias.table, torch.zeros(attention.num_heads, 1 + size**2, 1 + size**2).double()
        span = 2 * size - 1
        for query in range(size**2):
            for key in range(size**2):
                row = (key // size - query // size + size // 2) % span
                column = (key % size - query % size + size // 2) % span
                bias[:, 1 + query, 1 + key] = table[row * span + column].detach()
        return bias

    def allowed(self, row, column, rows, columns, height, width):
        size = self.size
        in_row = [True] + [row * size + pixel // size < height for pixel in range(size**2)]
        in_column = [True] + [column * size + pixel % size < width for pixel in range(size**2)]
        right, bottom = (torch.tensor([[a and b for b in valid] for a in valid]) for valid in (in_column, in_row))
        if (rows * size, columns * size) == (height, width):
            return torch.ones_like(right)
        if row == rows - 1 and column == columns - 1:
            return right | bottom
        return right if column == columns - 1 else bottom if row == rows - 1 else torch.ones_like(right)

    def attend(self, x, attention, bias=None, allowed=None):
        heads = attention.num_heads
        query, key, value = attention.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-2, -1) * query.shape[-1]**-0.5
        if bias is not None:
            logits = (logits + bias).masked_fill(~allowed, torch.finfo(logits.dtype).min)
        return attention.proj((logits.softmax(-1) @ value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize('size', [
    (1, 1), (1, 30), (2, 5), (12, 12), (24, 36),  # alone, and without padding
    (24, 30), (30, 24), (12, 13), (36, 25),  # one side is a multiple, and gets a whole region more
    (13, 37), (25, 49), (49, 25),  # one pixel more
    (23, 35), (50, 31), (100, 60)])
def test_every_size_gives_the_published_steps_numbers(size):
    """With regions of 12 x 12 pixels and the stem of three convolutions."""
    torch.manual_seed(sum(size))
    model = RegionViT({**SMALL, 'embed_dims': (8, 8, 16, 16)}).double().eval()
    x = torch.randn(2, 3, *size).double()
    for found, expected in zip(model(x), Plain(model)(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('size', [(2, 2), (16, 8), (16, 9), (9, 16), (17, 33), (33, 24), (31, 23), (65, 41)])
def test_every_size_gives_the_published_steps_numbers_with_position_generators(size):
    """With regions of 8 x 8 pixels and the stem of one convolution, of which one pixel more makes no token."""
    torch.manual_seed(sum(size))
    model = RegionViT(SMALL_PEG, depths=(2, 1, 2, 1)).double().eval()
    x = torch.randn(2, 3, *size).double()
    for found, expected in zip(model(x), Plain(model)(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_norms_have_the_published_eps():
    eps = {name: module.eps for name, module in RegionViT('tiny').named_modules() if isinstance(module, nn.LayerNorm)}
    assert {value for name, value in eps.items() if '.blocks.' in name} == {1e-6}
    assert {value for name, value in eps.items() if '.blocks.' not in name} == {1e-5}


@pytest.mark.parametrize(('size', 'grid', 'top', 'left'), [
    ((56, 84), (2, 3), 0, 0),
    ((56, 85), (3, 4), 14, 13),  # the height is a multiple, and gets a whole region more
    ((60, 84), (3, 4), 12, 14),
    ((29, 31), (2, 2), 13, 12),  # the larger half lies at the bottom and right
])
def test_images_lie_in_the_middle_of_regional_tokens(size, grid, top, left):
    embed = RegionalEmbed(1, 1, 28)
    nn.init.zeros_(embed.bias)
    nn.init.zeros_(embed.weight).data[..., top, left] = 1
    image = torch.zeros(1, 1, *size)
    image[..., 0, 0] = 1
    out = embed(image)
    assert out.shape == (1, *grid, 1)
    assert out.flatten().tolist() == [1.] + [0.] * (out.numel() - 1)


def test_position_biases_are_wrapped():
    """Of a window of 7, displacements from -6 to -4 are in rows 10 to 12, and from -3 to 6 in rows 0 to 9."""
    bias = PositionBias(7, 1)
    bias.table.data = torch.arange(169.)[:, None]
    found = bias(7, 7)[0]
    assert found.shape == (50, 50) and not found[0].any() and not found[:, 0].any()
    last, first = found[-1, 1:].view(7, 7), found[1, 1:].view(7, 7)  # queries at the end and at the beginning
    assert (last[:, 6] // 13).tolist() == [10, 11, 12, 0, 1, 2, 3] and (last[6] % 13).tolist() == [10, 11, 12, 0, 1, 2, 3]
    assert (first[:, 0] // 13).tolist() == list(range(3, 10)) and (first[0] % 13).tolist() == list(range(3, 10))
    torch.testing.assert_close(bias(2, 3)[0, 1:, 1:], first_of(found, 2, 3))


def first_of(bias, rows, columns):
    kept = [row * 7 + column + 1 for row in range(rows) for column in range(columns)]
    return bias[kept][:, kept]


def test_the_last_window_sees_a_union():
    """Of 3 x 3 tokens, the map has two rows and one column in the last window."""
    layout = Layout((5, 4), (2, 2), 3, torch.device('cpu'))
    assert [(part.number, part.size, part.mask is None) for part in layout.windows] == [
        (1, (3, 3), True), (1, (3, 1), True), (1, (2, 3), True), (1, (3, 3), False)]
    seen = layout.windows[-1].mask[0]
    assert seen[0].tolist() == [True, *[True] * 6, True, False, False]  # the regional token, which lies in the map
    assert seen[1].tolist() == seen[0].tolist()  # in the map: all rows of its column, and all columns of its rows
    assert seen[2].tolist() == [True, *[True] * 6, False, False, False]  # in its rows alone
    assert seen[7].tolist() == [True, *[True, False, False] * 3]  # in its columns alone
    assert not seen[9].any()


def test_the_last_window_sees_all_if_one_side_is_padded():
    layout = Layout((6, 4), (2, 2), 3, torch.device('cpu'))
    assert [(part.number, part.size, part.mask) for part in layout.windows] == [(3, (3, 3), None), (1, (3, 1), None)]
    whole = Layout((6, 9), (2, 3), 3, torch.device('cpu'))
    assert [(part.number, part.size, part.mask) for part in whole.windows] == [(6, (3, 3), None)]


def test_both_steps_have_the_same_attention():
    names = [name for name, _ in RegionViT('tiny').stages[1].blocks[0].named_parameters()]
    assert [name for name in names if 'qkv' in name or 'proj' in name] == [
        'attn.qkv.weight', 'attn.qkv.bias', 'attn.proj.weight', 'attn.proj.bias']


def test_transitions_have_two_kernels_for_each_channel_and_no_norm_after():
    model = RegionViT('small')
    assert [stage.patch_embed.proj.weight.shape for stage in model.stages[1:]] == [
        (192, 1, 3, 3), (384, 1, 3, 3), (768, 1, 3, 3)]
    assert [name for name, _ in model.stages[1].patch_embed.named_children()] == ['norm', 'proj']


def test_the_next_stage_takes_the_normalised_map():
    torch.manual_seed(0)
    model = RegionViT(SMALL).eval()
    x = torch.randn(1, 3, 40, 50)
    before = model(x)
    model.stages[0].norm.bias.data[0] += 1
    assert all(not torch.allclose(a, b) for a, b in zip(before, model(x), strict=True))
    assert [stage.norm is not None for stage in RegionViT(SMALL, map_norms=(3, )).stages] == [False, False, False, True]


@pytest.mark.parametrize(('arch', 'size', 'expected'), [
    ('tiny', (75, 90), [(19, 23), (10, 12), (5, 6), (3, 3)]),
    ('medium', (85, 65), [(21, 16), (11, 8), (6, 4), (3, 2)]),
    ('medium', (86, 66), [(22, 17), (11, 9), (6, 5), (3, 3)]),
    ('base_w14_peg', (1, 2), [(1, 1)] * 4),
])
def test_maps_have_the_published_sizes(arch, size, expected):
    with torch.device('meta'):
        outs = RegionViT(arch).eval()(torch.empty(1, 3, *size))
    assert [tuple(out.shape[2:]) for out in outs] == expected


@pytest.mark.parametrize(('arch', 'millions'), [('tiny', 13.8), ('small', 30.6), ('medium', 41.2), ('base', 72.7)])
def test_parameters_of_classifiers_are_the_published(arch, millions):
    with torch.device('meta'):
        model = RegionViT(arch, map_norms=(3, ))  # of regional tokens in the publication
        head = nn.Linear(model.out_channels[-1], 1000)
    found = sum(p.numel() for p in (*model.parameters(), *head.parameters())) / 1e6
    assert found == pytest.approx(millions, abs=0.06)


def fill(variant):
    """Published parameters as float32."""
    return {name: tensor.float() for name, tensor in golden.state_dict(GOLDEN['variants'][variant]).items()}


def test_published_classifiers_load_as_they_are_and_converted(tmp_path):
    published = {**fill('tiny_cls'), 'head.weight': torch.zeros(1000, 512), 'head.bias': torch.zeros(1000)}
    torch.save({'model': published}, tmp_path / 'published.pth')
    convert(str(tmp_path / 'published.pth'), str(tmp_path / 'converted.pth'), 'regionvit')
    for name in ('published.pth', 'converted.pth'):
        model = RegionViT('tiny', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / name)))
        model.init_weights()
        block = model.stages[2].blocks[7]
        assert torch.equal(block.norm0.weight, published['layers.2.block.8.norm0.weight'])
        assert torch.equal(block.attn.position_bias.table, published['layers.2.block.8.attn.rel_pos'].t())
        assert torch.equal(model.stages[3].patch_embed.norm.weight, published['layers.3.block.0.proj_cls.0.weight'].flatten())
        assert all((stage.norm.weight == 1).all() and not stage.norm.bias.any() for stage in model.stages)  # which start anew
    with pytest.raises(CheckpointError, match='regionvit tiny is another than in our ImageNet config'):
        convert(str(tmp_path / 'published.pth'), str(tmp_path / 'head.pth'), 'regionvit', with_head=True)


def test_published_detectors_load_as_they_are(tmp_path):
    """With the other library's prefix, and with both names of each transition."""
    published = fill('tiny')
    names = {f'backbone.bottom_up.model.{name}': tensor for name, tensor in published.items()}
    names.update({name.replace('proj_cls', 'proj'): tensor for name, tensor in names.items() if 'proj_cls' in name})
    names['backbone.fpn_lateral2.weight'] = torch.zeros(1)
    torch.save({'model': names}, tmp_path / 'detector.pth')
    convert(str(tmp_path / 'detector.pth'), str(tmp_path / 'converted.pth'), 'regionvit')
    for name in ('detector', 'converted'):
        model = RegionViT('tiny', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / f'{name}.pth')))
        model.init_weights()
        assert torch.equal(model.stages[3].norm.weight, published['norm3.weight'].flatten())
        assert torch.equal(model.stages[1].patch_embed.proj.weight, published['layers.1.block.0.proj_cls.2.weight'])


def test_weights_of_other_windows_are_resized_as_published(tmp_path):
    """Kernels of regional tokens, and tables of position biases in their wrapped order."""
    published = fill('small')
    torch.save(published, tmp_path / 'small.pth')
    model = RegionViT('small_w14', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'small.pth')))
    model.init_weights()

    def resize(x, size):
        return F.interpolate(x, size=(size, size), mode='bicubic', align_corners=False)

    torch.testing.assert_close(model.stages[0].patch_embed.regional.weight, resize(published['cls_token.proj.weight'], 56))
    table = resize(published['layers.1.block.1.attn.rel_pos'].view(1, 6, 13, 13), 27)[0].flatten(1).t()
    torch.testing.assert_close(model.stages[1].blocks[0].attn.position_bias.table, table)


@pytest.mark.parametrize('arch', ['small', 'small_w14', 'base_w14_peg'])
def test_checkpoints_name_their_windows(arch):
    with torch.device('meta'):
        state_dict = RegionViT(arch).state_dict()
    assert find_arch('regionvit', {name: torch.empty(tensor.shape) for name, tensor in state_dict.items()})[0] == arch


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = RegionViT('tiny')
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.)
    model.init_weights()
    tables = torch.cat([m.table.flatten() for m in model.modules() if isinstance(m, PositionBias)])
    linear = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Linear)])
    for weights in (tables, linear):
        assert weights.std().item() == pytest.approx(0.02, rel=0.03)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any()
        elif isinstance(module, nn.Conv2d) and module.weight.numel() > 3000:  # torch's own
            assert module.weight.std().item() == pytest.approx((1 / (3 * module.weight[0].numel()))**0.5, rel=0.05)


def test_channels_double_or_more_by_whole_kernels():
    with pytest.raises(ValueError, match=r'each of embed_dims must be a multiple of the one before, got \(8, 12, 24, 24\)'):
        RegionViT(SMALL, embed_dims=(8, 12, 24, 24))
