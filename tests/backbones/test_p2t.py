"""What is P2T's own; tests/backbones/test_contract.py holds what every backbone must do."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmsimvit import P2T
from mmsimvit.backbones.p2t import POOL_RATIOS, average_cells, count_cells, list_cells, pool
from mmsimvit.layers import Block, ConvEmbed, InvertedResidual


def pooled(x, ratios, weight, bias):
    height, width = x.shape[1:3]
    cells, _ = list_cells(height, width, ratios, x)
    return pool(x, average_cells(height, ratios, x), average_cells(width, ratios, x), cells, weight, bias)


def test_halves_are_rounded_to_even_and_no_map_is_empty():
    found = [count_cells(length, (4, 1), torch.device('cpu')).tolist() for length in (1, 2, 3, 6, 10, 14)]
    assert found == [[1, 1], [1, 2], [1, 3], [2, 6], [2, 10], [4, 14]]
    for length in range(1, 400):
        for ratios in POOL_RATIOS:
            assert count_cells(length, ratios, torch.device('cpu')).tolist() == [max(1, round(length / r)) for r in ratios]


@pytest.mark.parametrize('ratios', POOL_RATIOS)
@pytest.mark.parametrize('size', [(1, 1), (2, 7), (10, 14), (31, 45)])
def test_pools_as_adaptive_average_pooling(size, ratios):
    """Also with cells that overlap, each map with the convolution of its own level."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.double)
                       for shape in ((2, *size, 3), (12, 1, 3, 3), (12, )))
    expected = []
    for level, ratio in enumerate(ratios):
        level_map = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), [max(1, round(length / ratio)) for length in size])
        part = slice(3 * level, 3 * level + 3)
        level_map = level_map + F.conv2d(level_map, weight[part], bias[part], padding=1, groups=3)
        expected.append(level_map.flatten(2).transpose(1, 2))
    torch.testing.assert_close(pooled(x, ratios, weight, bias), torch.cat(expected, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(('size', 'keys'), [((56, 56), 54), ((28, 28), 54), ((14, 14), 54), ((7, 7), 73)])
def test_pyramids_of_224_pixels_have_the_published_keys(size, keys):
    stage = {56: 0, 28: 1, 14: 2, 7: 3}[size[0]]
    cells, mask = list_cells(*size, POOL_RATIOS[stage], torch.empty(()))
    assert cells.shape == (3, keys) and mask is None


def test_keys_grow_with_the_image():
    numbers = [list_cells(side, side, POOL_RATIOS[0], torch.empty(()))[0].shape[1] for side in (56, 128, 200)]
    assert numbers == [54, 11**2 + 8**2 + 6**2 + 5**2, 17**2 + 12**2 + 10**2 + 8**2]


def test_blocks_of_a_stage_share_its_convolutions():
    """The gradient of one is the sum over the blocks, and a change of one is a change in each of them."""
    torch.manual_seed(0)
    stage = P2T('tiny', depths=(2, 1, 1, 1), out_indices=(0, ), drop_path_rate=0.).double().stages[0]
    assert [name for name, _ in stage.named_parameters() if 'pool_convs' in name] == [
        f'pool_convs.{level}.{kind}' for level in range(4) for kind in ('weight', 'bias')]
    x = torch.randn(1, 3, 96, 64, dtype=torch.double)
    whole = torch.autograd.grad(stage(x).square().sum(), stage.pool_convs[2].weight)[0]
    parts = []
    for own in range(2):
        run_block = stage.run_block

        def run(block, y, *pyramid, own=own, run_block=run_block):
            if block is not stage.blocks[own]:
                pyramid = [part.detach() for part in pyramid]
            return run_block(block, y, *pyramid)

        stage.run_block = run
        parts.append(torch.autograd.grad(stage(x).square().sum(), stage.pool_convs[2].weight)[0])
        stage.run_block = run_block
    assert all(part.any() for part in parts)
    torch.testing.assert_close(sum(parts), whole)


def test_norms_have_two_epsilons():
    model = P2T('tiny')
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            found.setdefault(name.partition('.')[2].partition('.')[2].lstrip('blocks.0123456789'), set()).add(module.eps)
    assert found == {'patch_embed.norm': {1e-5}, 'norm1': {1e-6}, 'norm2': {1e-6}, 'attn.norm': {1e-5}}


def test_maps_have_no_norms():
    model = P2T('tiny')
    assert all(stage.norm is None for stage in model.stages)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_ffn_has_hardswish_twice():
    torch.manual_seed(0)
    ffn = InvertedResidual(4, 8, F.hardswish)
    x = torch.randn(2, 5, 6, 4)
    y = F.conv2d(x.permute(0, 3, 1, 2), ffn.fc1.weight[..., None, None], ffn.fc1.bias)
    y = y * (y + 3).clamp(0, 6) / 6
    y = F.conv2d(y, ffn.dwconv.weight, ffn.dwconv.bias, padding=1, groups=8)
    y = y * (y + 3).clamp(0, 6) / 6
    y = F.conv2d(y, ffn.fc2.weight[..., None, None], ffn.fc2.bias)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(ffn(x).permute(0, 3, 1, 2), y)


def test_published_projections_become_linear_layers():
    state_dict = {'block1.0.mlp.fc1.weight': torch.randn(6, 2, 1, 1), 'd_convs4.3.bias': torch.randn(2),
                  'block2.1.attn.q.0.weight': torch.randn(2, 2), 'head.weight': torch.zeros(1), 'head.bias': torch.zeros(1)}
    found = P2T.published.convert(state_dict)
    assert list(found) == ['stages.0.blocks.0.ffn.fc1.weight', 'stages.3.pool_convs.3.bias', 'stages.1.blocks.1.attn.q.weight']
    assert torch.equal(found['stages.0.blocks.0.ffn.fc1.weight'], state_dict['block1.0.mlp.fc1.weight'].flatten(1))


def test_drop_path_grows_over_all_blocks():
    model = P2T('tiny', drop_path_rate=0.12)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert all(isinstance(block, Block) for stage in model.stages for block in stage.blocks)
    assert rates == pytest.approx([0.01 * index for index in range(13)])


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = P2T('tiny')
    model.init_weights()
    linear = torch.cat([m.weight.flatten() for name, m in model.named_modules()
                        if isinstance(m, nn.Linear) and '.attn.' in name])
    assert linear.std().item() == pytest.approx(0.02, rel=0.01)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and '.attn.' in name:
            assert not module.bias.any()
        elif isinstance(module, (nn.Linear, nn.Conv2d)):  # torch's own for convolutions, which those of FFNs were
            bound = module.weight[0].numel()**-0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound and 0.6 * bound < module.bias.abs().max() <= bound, name
    assert isinstance(model.stages[1].patch_embed, ConvEmbed)
