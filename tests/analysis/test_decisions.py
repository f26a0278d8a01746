"""Pictures of what dynamic sparsification decides."""
import numpy as np
import pytest
import torch

from mmsimvit.analysis import feature_maps
from tests.backbones.table import BACKBONES


@pytest.mark.parametrize(('name', 'shape'), [('DynamicConvNeXt', (5, 6)), ('DynamicSwin', (6, 7))])
def test_kept_positions_are_as_they_are_and_others_are_grey(name, shape):
    torch.manual_seed(0)
    model = BACKBONES[name].build().eval()
    image = np.zeros((90, 100, 3), np.uint8)
    image[..., 0] = 200
    view = feature_maps.View(torch.randn(1, 3, 90, 100), image, np.zeros((90, 100, 2)), (100, 90))
    stride, decisions = feature_maps.get_decisions(model, view)
    assert stride == 16 and [kept.shape for kept in decisions] == [shape] * 2
    assert [kept.sum() for kept in decisions] == [int(shape[0] * shape[1] * ratio) for ratio in model.keep_ratios]
    figure = feature_maps.draw_decisions(view, stride, decisions, model.keep_ratios)
    for ax, kept in zip(figure.axes[1:], decisions, strict=True):
        shown = ax.images[0].get_array()
        coloured = (shown == image).all(-1)
        for row, column in np.ndindex(80, 96):
            assert coloured[row, column] == kept[row // 16, column // 16]
    assert len(feature_maps.get_feature_maps(model, view)) == 4


def test_others_decide_nothing():
    assert feature_maps.get_decisions(torch.nn.Identity(), None) == (0, [])
