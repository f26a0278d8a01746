"""What is DAT's own; tests/backbones/test_contract.py holds what every backbone must do."""
import math

import pytest
import torch
import torch.nn.functional as F

from mmsimvit import DAT
from mmsimvit.backbones import dat
from mmsimvit.backbones.dat import DeformableAttention, NeighborhoodAttention
from mmsimvit.layers import WindowAttention
from mmsimvit.weights import convert_head, convert_state_dict, match
from tests import golden


def fill(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return module


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def apply(layer, x):
    return F.linear(x, layer.weight, layer.bias)


def interpolate(grid, y, x):
    """A vector of ``(H, W, C)`` at a place that need not be a whole number, zero outside."""
    total = torch.zeros_like(grid[0, 0])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]:
                total = total + grid[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def slow_windows(attention, x):
    """Window by window, in the map that the shift gives, of one image ``(H, W, C)``."""
    size, shift, heads = attention.size[0], attention.shift, attention.num_heads
    height, width, dims = x.shape
    rows, columns = (-(-length // size) * size for length in (height, width))
    padded = F.pad(x, (0, 0, 0, columns - width, 0, rows - height))
    out = torch.zeros_like(padded)
    query, key, value = apply(attention.qkv, padded).split(dims, -1)
    table = attention.position_bias.table

    for top in range(0, rows, size):
        for left in range(0, columns, size):
            places = [((top + y + shift) % rows, (left + x + shift) % columns) for y in range(size) for x in range(size)]
            for head in range(heads):
                own = slice(head * dims // heads, (head + 1) * dims // heads)
                for i, place in enumerate(places):
                    logits = []
                    for j, other in enumerate(places):
                        down, right = i // size - j // size + size - 1, i % size - j % size + size - 1
                        logit = (query[place][own] @ key[other][own] / (dims // heads)**0.5
                                 + table[down * (2 * size - 1) + right, head])
                        # A window has both only where the shift joins the last rows or columns to the first.
                        apart = any((a < shift) != (b < shift) for a, b in zip(place, other))
                        logits.append(logit - 100 if apart else logit)
                    weights = torch.stack(logits).softmax(0)
                    out[place][own] = weights @ torch.stack([value[other][own] for other in places])
    return apply(attention.proj, out[:height, :width])


@pytest.mark.parametrize('is_shifted', [False, True])
@pytest.mark.parametrize('shape', [(6, 9), (7, 4), (3, 3)], ids=str)
def test_windows_one_by_one(shape, is_shifted):
    """Padding is a key like others, and the mask is that of the padded map."""
    attention = fill(WindowAttention(4, 2, 3, 2 if is_shifted else 0).double())
    x = noise(2, *shape, 4)
    torch.testing.assert_close(attention(x), torch.stack([slow_windows(attention, image) for image in x]))


def test_the_shift_is_four_of_seven():
    assert [block.attn.shift for block in DAT('tiny').stages[0].blocks] == [0, 4]


def slow_deformable(attention, x, stride, kernel_size):
    """Query by query, of one image ``(H, W, C)``."""
    height, width, dims = x.shape
    heads, groups, channels = attention.num_heads, attention.groups, dims // attention.groups
    query = apply(attention.query, x)
    network, padding = attention.offset, 0 if kernel_size == stride else kernel_size // 2
    keys, places = [], []
    for group in range(groups):
        own = slice(group * channels, (group + 1) * channels)
        part = F.conv2d(query[..., own].permute(2, 0, 1)[None], network.conv.weight, network.conv.bias, stride, padding,
                        groups=channels)[0].permute(1, 2, 0)
        offset = apply(network.proj, F.gelu(F.layer_norm(part, part.shape[-1:], network.norm.weight, network.norm.bias, 1e-5)))
        counts, sampled = offset.shape[:2], []
        for row in range(counts[0]):
            for column in range(counts[1]):
                place = []
                for index, count, part in zip((row, column), counts, offset[row, column].tolist()):
                    extent = count - 1 if attention.from_borders else count
                    if attention.offset_range is not None:
                        part = math.tanh(part) * attention.offset_range / extent
                    part += (index + 0.5) / extent * 2 - 1
                    place.append(min(max(part, -1), 1) if attention.offset_range is None else part)
                sampled.append((place, interpolate(x[..., own], *((part + 1) / 2 * (length - 1)
                                                                  for part, length in zip(place, (height, width))))))
        places.append([place for place, _ in sampled])
        keys.append(torch.stack([vector for _, vector in sampled]))
    sampled = torch.cat(keys, -1)
    key, value = apply(attention.key, sampled), apply(attention.value, sampled)
    size = round(len(attention.position_bias.table)**0.5)
    table = attention.position_bias.table.view(size, size, heads)
    out = torch.zeros_like(x)
    for head in range(heads):
        own = slice(head * dims // heads, (head + 1) * dims // heads)
        for row in range(height):
            for column in range(width):
                at = [index / (length - 1) * 2 - 1 if attention.from_borders else (index + 0.5) / length * 2 - 1
                      for index, length in ((row, height), (column, width))]
                bias = torch.stack([interpolate(table, *(((a - b) / 2 + 1) / 2 * (size - 1) for a, b in zip(at, place)))[head]
                                    for place in places[head * groups // heads]])
                logits = key[:, own] @ query[row, column, own] / (dims // heads)**0.5 + bias
                out[row, column, own] = logits.softmax(0) @ value[:, own]
    return apply(attention.proj, out)


@pytest.mark.parametrize(('stride', 'kernel_size', 'offset_range', 'from_borders'), [
    (1, 3, 2, False), (1, 5, 2, True), (2, 5, None, True), (4, 7, None, True), (2, 2, None, True)], ids=str)
def test_deformable_attention_query_by_query(stride, kernel_size, offset_range, from_borders):
    """Both sampling conventions meet: places and tables are corner-aligned, and references of half pixels divided by one less
    than the count, as published."""
    attention = fill(DeformableAttention(8, 4, 2, stride, kernel_size, offset_range, from_borders, 5).double())
    x = noise(2, 7, 10, 8)
    torch.testing.assert_close(attention(x),
                               torch.stack([slow_deformable(attention, image, stride, kernel_size) for image in x]))


def test_references_are_off_the_centre():
    """Without offsets, those of the detection code reach beyond the map, and only those of DAT++ are kept in it."""
    for offset_range, from_borders, expected in ((2, False, [-0.75, -0.25, 0.25, 0.75]), (2, True, [-2 / 3, 0, 2 / 3, 4 / 3]),
                                                 (None, True, [-2 / 3, 0, 2 / 3, 1])):
        attention = DeformableAttention(4, 1, 1, 1, 3, offset_range, from_borders, 4).double()
        torch.nn.init.zeros_(attention.offset.proj.weight)
        places = attention.choose_places(noise(1, 4, 4, 4))[0]
        torch.testing.assert_close(places[:, 0, 0], torch.tensor(expected, dtype=torch.float64))
        torch.testing.assert_close(places[0, :, 1], torch.tensor(expected, dtype=torch.float64))


def slow_neighborhoods(attention, x):
    """Query by query, of one image ``(H, W, C)``."""
    size, heads, (height, width, dims) = attention.window_size, attention.num_heads, x.shape
    x = F.pad(x, (0, 0, 0, max(size - width, 0), 0, max(size - height, 0)))
    query, key, value = apply(attention.qkv, x).split(dims, -1)
    table, out = attention.position_bias.table.view(2 * size - 1, 2 * size - 1, heads), torch.zeros_like(x)
    for row in range(height):
        for column in range(width):
            top, left = (min(max(place - size // 2, 0), length - size) for place, length in zip((row, column), x.shape))
            for head in range(heads):
                own = slice(head * dims // heads, (head + 1) * dims // heads)
                bias = table[top - row + size - 1:top - row + 2 * size - 1, left - column + size - 1:, head][:, :size].flatten()
                near = [part[top:top + size, left:left + size, own].flatten(0, 1) for part in (key, value)]
                out[row, column, own] = (near[0] @ query[row, column, own] / (dims // heads)**0.5
                                         + bias).softmax(0) @ near[1]
    return apply(attention.proj, out[:height, :width])


@pytest.mark.parametrize('shape', [(7, 9), (4, 8), (2, 3)], ids=str)
def test_neighborhoods_one_by_one(shape):
    """Windows are moved into the map; padding of maps that are smaller than one is a key like others."""
    attention = fill(NeighborhoodAttention(4, 2, 5).double())
    x = noise(2, *shape, 4)
    torch.testing.assert_close(attention(x), torch.stack([slow_neighborhoods(attention, image) for image in x]))


def test_queries_a_few_rows_at_a_time_are_the_whole(monkeypatch):
    attention = fill(DeformableAttention(8, 4, 2, 1, 3, 2, True, 5).double())
    results = []
    for chunk_bytes in (1 << 30, 1, 3 * 2 * 4 * 6 * 54 * 8):  # at once, each row, three rows
        monkeypatch.setattr(dat, 'CHUNK_BYTES', chunk_bytes)
        x, kept = noise(2, 9, 6, 8).requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            out = attention(x)
        attention.zero_grad()
        out.square().sum().backward()
        results.append([out, x.grad, *(p.grad.clone() for p in attention.parameters())])
        assert max(kept) < 2 * 4 * 54**2 or chunk_bytes == 1 << 30  # no weights of a whole map
        with torch.no_grad():
            torch.testing.assert_close(attention(x), out)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_initialisation():
    """As torch has it, but tables."""
    torch.manual_seed(0)
    for arch, deviations in (('tiny_det', {WindowAttention: 0.01, DeformableAttention: 0.01}),
                             ('plus_tiny', {NeighborhoodAttention: 0.02, DeformableAttention: 0.01})):
        model = DAT(arch)
        model.init_weights()
        for kind, std in deviations.items():
            tables = [module.position_bias.table.flatten() for module in model.modules() if isinstance(module, kind)]
            assert torch.cat(tables).std().item() == pytest.approx(std, rel=0.03)
        ffn = model.stages[3].blocks[0].ffn
        assert ffn.fc1.weight.std().item() == pytest.approx((1 / (3 * ffn.fc1.in_features))**0.5, rel=0.02)
        assert ffn.fc1.bias.any()


@pytest.mark.parametrize(('arch', 'expected'), [
    ('tiny_det', [(22, 31), (11, 15), (5, 7), (2, 3)]), ('plus_tiny', [(23, 32), (12, 16), (6, 8), (3, 4)])])
def test_maps_of_dat_are_rounded_down_and_those_of_the_other_up(arch, expected):
    with torch.device('meta'):
        assert [tuple(out.shape[2:]) for out in DAT(arch)(torch.empty(1, 3, 90, 127))] == expected


@pytest.mark.parametrize('arch', ['tiny', 'plus_tiny'])
def test_published_classifiers_load(arch):
    known = golden.load('dat')['variants'][arch]['state']
    state = {name: torch.zeros(shape) for name, shape in known.items() if not name.startswith('norms.')}
    width = known['stages.3.layer_norms.0.norm.weight'][0]
    state.update({'cls_norm.norm.weight': torch.ones(width), 'cls_norm.norm.bias': torch.zeros(width),
                  'cls_head.weight': torch.ones(1000, width), 'cls_head.bias': torch.zeros(1000)})
    fit = match(DAT(arch), convert_state_dict('dat', state))
    assert fit.complete and not fit.resampled
    assert convert_head('dat', arch, state)['head.fc.weight'].shape == (1000, width)
    dense = match(DAT('tiny_det' if arch == 'tiny' else arch), convert_state_dict('dat', state))
    assert dense.complete and len(dense.added) == 6  # the norms of three maps


@pytest.mark.parametrize('arch', ['tiny_det', 'plus_tiny'])
def test_numbers_that_are_none_go_on_to_the_loss(arch):
    """Samplers take places that are NaN for indices of pixels."""
    model = DAT(arch).eval()
    images = torch.rand(2, 3, 64, 64)
    images[0, 0, 0, 0] = math.nan
    with torch.no_grad():
        for out in model(images):
            assert not out[0].isfinite().all() and out[1].isfinite().all()
        attention = model.stages[3].blocks[1].attn
        attention.offset.proj.weight[0, 0] = math.nan  # of offsets alone
        assert model(images[1:])[3].isnan().all()
        attention.offset.proj.weight.normal_(std=1e20)
        assert model(images[1:])[3].isfinite().all()


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(groups=(1, 1, 5, 6)), 'each of num_heads must be a multiple of its groups, got 12 and 5'),
    (dict(blocks=('LS', 'LS', 'ND', 'LD'), window_size=6), 'must have an odd window_size, got 6')])
def test_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        DAT('tiny', **changes)
