import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mmsimvit.layers import FFN


def test_recomputes_gelu():
    """The gradients are those of plain autograd, which would keep two maps of the hidden channels."""
    torch.manual_seed(0)
    plain, ffn = FFN(8, 64).double(), FFN(8, 64, recompute=True).double()
    ffn.load_state_dict(plain.state_dict())
    x = torch.randn(2, 16, 8, dtype=torch.double, requires_grad=True)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out = ffn(x)
    assert [tensor.numel() for tensor in kept].count(32 * 64) == 1
    gradients = [torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
                 for module, y in ((ffn, out), (plain, plain(x)))]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
