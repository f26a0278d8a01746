"""What is DWNet's own; tests/backbones/test_contract.py holds what every backbone must do."""
import pytest
import torch

from mmsimvit import DWNet
from mmsimvit.backbones.dwnet import ConvBranch, DynamicDepthwiseConv, PatchMerging


def test_padding_is_seen_by_the_convolution():
    """As published: what is zero before the first batch norm is not after it."""
    torch.manual_seed(0)
    x = torch.randn(1, 8, 12, 12)
    branches = [ConvBranch(8, torch.nn.Conv2d(8, 8, 7, padding=3, groups=8), pads).eval() for pads in (True, False)]
    branches[0].bn1.bias.data.fill_(0.5)
    branches[1].load_state_dict(branches[0].state_dict())
    rows, _ = torch.nonzero((branches[0](x) - branches[1](x)).abs().amax(1)[0] > 1e-6, as_tuple=True)
    assert rows.min() == 0 and (branches[0](x) - branches[1](x)).abs()[:, :, :9, :9].max() < 1e-6  # three pixels from the end
    torch.testing.assert_close(branches[0](x[..., :7, :7]), branches[1](x[..., :7, :7]))  # nothing to pad


def test_cells_are_merged_column_by_column():
    merging = PatchMerging(1, 4)
    torch.nn.init.eye_(merging.reduction.weight)
    merging.norm = torch.nn.Identity()
    assert merging(torch.arange(16.).view(1, 1, 4, 4))[0, 0, 1].tolist() == [2, 6, 3, 7]


def test_dynamic_kernels_are_of_each_image():
    torch.manual_seed(0)
    conv = DynamicDepthwiseConv(8).eval()
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(conv(x), torch.cat([conv(x[:1]), conv(x[1:])]))


def test_one_image_cannot_train_dynamic_kernels():
    model = DWNet('dynamic_t', out_indices=(0, ))
    with pytest.raises(ValueError, match="needs two of them.*sync_bn='torch'"):
        model(torch.zeros(1, 3, 32, 32))
    model.eval()
    model(torch.zeros(1, 3, 32, 32))


def test_weight_decay_is_left_out_for_names_with_norm_in_detectors():
    """The published detectors' rule leaves out the batch norms in blocks, whose names are without it; so must ours be."""
    names = [name for name, _ in DWNet('t').named_parameters() if 'norm' in name]
    assert {name.split('.')[2] for name in names} == {'patch_embed', 'norm'}
    assert len(names) == 2 * (4 + 4)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(kernels='inhomogeneous', channels_per_kernel=(5, 6, 12, 24)), 'multiple of its channels_per_kernel, got 96 and 5'),
    (dict(kernels='sharp'), r"arch\['kernels'\] of DWNet must be static, dynamic or inhomogeneous, got 'sharp'"),
])
def test_refuses_bad_archs(change, message):
    with pytest.raises(ValueError, match=message):
        DWNet({**DWNet.arch_zoo['t'], **change})


def test_of_variants_of_one_size_the_nearest_is_found():
    for arch in DWNet.arch_zoo:
        assert DWNet(arch, mlp_ratios=(2, 2, 2, 2)).find_variant() == arch


def test_initialisation_is_the_published():
    torch.manual_seed(0)
    model = DWNet('t')
    model.init_weights()
    linear = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Linear)])
    assert linear.std().item() == pytest.approx(0.02, rel=0.01)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 10000:  # torch's own
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((1 / (3 * fan_in))**0.5, rel=0.05)
