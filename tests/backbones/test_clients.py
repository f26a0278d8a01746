"""What tools and losses do to a backbone: fuse norms, change maps in place, differentiate twice, vmap, send no image."""
import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.utils import fuse_conv_bn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmsimvit import LIT, DWNet, GCViT, SimViT
from tests.backbones.table import BACKBONES

SIZES = dict(embed_dims=(8, 16, 24, 32), depths=(1, 2, 2, 1), mlp_ratios=(2, 2, 2, 2))
HEADS = dict(SIZES, num_heads=(1, 2, 3, 4))
LIT_ARCH = dict(HEADS, position_grids=None, bias_grids=(6, 3), norm_eps=1e-5, map_norms=(1, 2, 3))
GCVIT_ARCH = dict(HEADS, window_sizes=(7, 7, 7, 7), layer_scale=None)
DWNET_ARCH = dict(SIZES, kernels='dynamic', channels_per_kernel=(1, 1, 1, 1), dense=True)


def make(kind, *arch):
    torch.manual_seed(0)
    model = kind(*arch)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(('kind', 'arch'), [
    (LIT, LIT_ARCH), (LIT, {**LIT_ARCH, 'embed_dims': (4, 8, 16, 32), 'num_heads': (1, 1, 1, 1)}),  # as wide as the offsets
    (DWNet, DWNET_ARCH)], ids=['lit', 'lit-8', 'dwnet'])
def test_norms_that_mmcv_folds_into_convolutions(kind, arch):
    model = make(kind, arch)
    for _ in range(3):
        model(torch.randn(4, 3, 64, 64))  # statistics
    model.eval()
    images = torch.randn(1, 3, 64, 64)
    fused = fuse_conv_bn(copy.deepcopy(model))
    with torch.no_grad():
        torch.testing.assert_close(fused(images), model(images), rtol=1e-4, atol=1e-4)


def test_maps_that_a_head_changes_in_place():
    model, images = make(LIT, {**LIT_ARCH, 'map_norms': ()}), torch.randn(2, 3, 64, 64)
    gradients = []
    for activation in (F.relu, F.relu_):
        model.zero_grad()
        sum(activation(x).sum() for x in model.eval()(images)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


# What torch and torchvision say of operators that have none, as docs/errors.md does.
ONCE_DIFFERENTIABLE = {'LIT': 'double backwards on deform_conv2d not supported',
                       'LIT-Ti': 'double backwards on deform_conv2d not supported',
                       'DAT': 'derivative for aten::grid_sampler_2d_backward is not implemented',
                       'DAT++': 'derivative for aten::grid_sampler_2d_backward is not implemented',
                       'GPViT-adapter': 'derivative for aten::_embedding_bag_per_sample_weights_backward is not implemented'}


@pytest.mark.parametrize('name', [pytest.param(name, marks=[] if name in ('SimViT', 'LIT') else pytest.mark.full)
                                  for name in BACKBONES])
def test_second_derivatives(name):
    """Of a gradient along a direction, against the difference of two gradients; or one line."""
    model = make(BACKBONES[name].build).double().eval()
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(image)

    def gradient(x, **keywords):
        with sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.grad(sum(y.square().mean() for y in model(x)), x, **keywords)[0]

    def differentiate_twice():
        with sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.grad((gradient(image, create_graph=True) * direction).sum(), image)[0]

    if name in ONCE_DIFFERENTIABLE:
        with pytest.raises(RuntimeError, match=ONCE_DIFFERENTIABLE[name]):
            differentiate_twice()
        return
    found = differentiate_twice()
    step = 1e-5
    ahead, behind = (gradient((image + sign * step * direction).detach().requires_grad_()) for sign in (1, -1))
    torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(('kind', 'arch'), [(LIT, LIT_ARCH), (GCViT, GCVIT_ARCH)], ids=['lit', 'gcvit'])
@pytest.mark.filterwarnings('ignore:There is a performance drop')
def test_an_ensemble_by_vmap(kind, arch):
    models = [make(kind, arch).eval(), kind(arch).eval()]
    parameters, buffers = stack_module_state(models)
    skeleton, images = copy.deepcopy(models[0]).to('meta'), torch.randn(2, 3, 64, 64)
    found = vmap(lambda *state: functional_call(skeleton, state, (images, )))(parameters, buffers)
    for index, model in enumerate(models):
        torch.testing.assert_close(tuple(x[index] for x in found), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('kind', 'arch'), [(SimViT, HEADS), (LIT, LIT_ARCH), (GCViT, GCVIT_ARCH), (DWNet, DWNET_ARCH)])
def test_no_image(kind, arch):
    model = make(kind, arch).eval()
    maps = model(torch.zeros(0, 3, 64, 50))
    assert [tuple(x.shape) for x in maps] == [(0, *x.shape[1:]) for x in model(torch.zeros(1, 3, 64, 50))]
