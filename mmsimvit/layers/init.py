"""Random initialisations that several papers share."""
from math import sqrt

from mmengine.model import normal_init, trunc_normal_init
from torch import nn


def init_as_pvt(model: nn.Module) -> None:
    """Draw PVT's initialisation (2102.12122), which many papers took over.

    Linear layers come from a normal distribution with a deviation of 0.02, cut at 2, and convolutions from one with
    ``sqrt(2 / (kernel height * kernel width * output channels / groups))``. Biases are zero. All else is as torch makes it.
    """
    for module in model.modules():
        reset = getattr(module, 'reset_parameters', None)
        if isinstance(module, nn.Linear):
            trunc_normal_init(module, std=0.02)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            normal_init(module, std=sqrt(2 / fan_out))
        elif callable(reset):
            reset()


def draw_bias(conv: nn.Conv2d) -> None:
    """Draw the biases of a convolution as torch does, ``(C, )`` uniform within the root of one over its fan-in.

    With biases of zero in a first patch embedding, tokens of zero padding (of smaller images in a batch) stay zero up to the
    last block, and every norm multiplies their gradient by 1 / sqrt(eps): the first gradients overflow, and where gradients
    are clipped the training never leaves its start.
    """
    if conv.bias is not None:
        bound = 1 / sqrt(conv.weight[0].numel())
        nn.init.uniform_(conv.bias, -bound, bound)
