"""What is GC ViT's own; tests/backbones/test_contract.py holds what every backbone must do."""
import pytest
import torch

from mmsimvit import GCViT
from mmsimvit.backbones.gcvit import GlobalQuery, WindowAttention

CLASSIFIER = {**GCViT.arch_zoo['xxtiny'], 'window_sizes': (7, 7, 14, 7)}


@pytest.mark.parametrize(('arch', 'expected'), [('xxtiny', [3, 2, 1, 0]), (CLASSIFIER, [3, 2, 0, 0])],
                         ids=['dense', 'classifier'])
def test_stage_3_pools_its_queries_in_dense_prediction_alone(arch, expected):
    assert [stage.global_query.num_pools for stage in GCViT(arch).stages] == expected


def test_windows_do_not_see_each_other_and_global_queries_see_everything():
    torch.manual_seed(0)
    x = torch.randn(1, 12, 12, 8)
    changed = x.clone()
    changed[:, :4, :4] += 1
    local = WindowAttention(8, 2, 4, is_global=False)
    rows, columns = torch.nonzero((local(x) != local(changed)).any(-1)[0], as_tuple=True)
    assert (rows.max(), columns.max()) == (3, 3)
    query, attention = GlobalQuery(8, 4, 1), WindowAttention(8, 2, 4, is_global=True)
    assert (attention(x, query(x)) != attention(x, query(changed))).any(-1).all()


def test_padding_is_not_masked():
    """As published: with a bias, the keys of the padding take their share of the softmax."""
    attention = WindowAttention(4, 1, 4, is_global=False)
    for p in attention.parameters():
        torch.nn.init.zeros_(p)
    attention.proj.weight.data.copy_(torch.eye(4))
    attention.qkv.bias.data[8:] = 1.  # every value
    attention.qkv.weight.data[8:] = torch.eye(4)
    out = attention(torch.ones(1, 2, 4, 4))  # eight pixels with values of 2, eight of padding with values of 1
    torch.testing.assert_close(out, torch.full_like(out, 1.5))


def test_layer_scale_begins_small_where_it_is():
    torch.manual_seed(0)
    model = GCViT('small', out_indices=(0, ))
    model.init_weights()
    assert (model.stages[0].blocks[0].scale1.gamma == 1e-5).all()
    assert 'stages.0.blocks.0.scale1.gamma' not in GCViT('xxtiny', out_indices=(0, )).state_dict()


def test_a_stage_without_global_block_has_no_queries():
    model = GCViT({**CLASSIFIER, 'depths': (1, 2, 1, 1)})
    assert [stage.global_query is not None for stage in model.stages] == [False, True, False, False]


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = GCViT('xxtiny')
    model.init_weights()
    linear = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Linear)])
    assert linear.std().item() == pytest.approx(0.02, rel=0.01)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 10000:  # torch's own
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((1 / (3 * fan_in))**0.5, rel=0.05)
