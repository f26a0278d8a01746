"""Windows and stripes, padded by either rule, eager and traced."""
import pytest
import torch
from torch import nn

from mmsimvit.layers import merge_windows, split_into_windows
from tests.conftest import exports


def numbers(batch, height, width):
    return torch.arange(1, batch * height * width + 1).view(batch, height, width, 1).float()


def test_windows_go_row_by_row():
    windows = split_into_windows(numbers(2, 5, 7), (3, 3))
    assert windows.shape == (2 * 2 * 3, 9, 1)
    assert windows[1, :, 0].tolist() == [4, 5, 6, 11, 12, 13, 18, 19, 20]  # the second of the first row
    assert windows[5, :, 0].tolist() == [28, 0, 0, 35, 0, 0, 0, 0, 0]  # the last of the first image, with padding


def test_padding_may_be_centred():
    """Of three zeros one lies before and two behind; of one, the one behind."""
    windows = split_into_windows(numbers(1, 1, 3), (4, 4), centred=True)
    assert windows.view(4, 4).tolist() == [[0, 0, 0, 0], [1, 2, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_stripes_are_as_long_as_the_map():
    x = numbers(1, 2, 3)
    assert split_into_windows(x, (None, 1))[..., 0].tolist() == [[1, 4], [2, 5], [3, 6]]
    assert split_into_windows(x, (1, None))[..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert split_into_windows(x, (None, 2))[..., 0].tolist() == [[1, 2, 4, 5], [3, 0, 6, 0]]
    assert split_into_windows(x, (None, None))[..., 0].tolist() == [[1, 2, 3, 4, 5, 6]]


SIZES = [(3, 3), (4, 2), (None, 2), (2, None), (7, 7), (1, 1), (None, None)]


class Pair(nn.Module):
    """What attention inside of windows does to positions."""

    def __init__(self, size, centred):
        super().__init__()
        self.arguments = size, centred

    def forward(self, x):
        size, centred = self.arguments
        windows = split_into_windows(x, size, centred)
        return windows.sum(1), merge_windows(windows, size, *x.shape[:3], centred=centred)


@pytest.mark.parametrize('centred', [False, True])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_merging_undoes_splitting(size, centred):
    for shape in ((2, 5, 7), (1, 1, 1), (1, 4, 6), (2, 9, 2)):
        x = numbers(*shape)
        _, merged = Pair(size, centred)(x)
        assert torch.equal(merged, x)
        rectangle = [length if part is None else part for part, length in zip(size, shape[1:], strict=True)]
        apart = split_into_windows(x, size, centred).unflatten(1, rectangle)
        assert torch.equal(merge_windows(apart, size, *shape, centred=centred), x)


@exports
@pytest.mark.parametrize('centred', [False, True])
@pytest.mark.parametrize('size', SIZES[:4], ids=str)
def test_traces_hold_for_other_sizes(size, centred):
    dims = {0: torch.export.Dim('batch', min=1, max=64), 1: torch.export.Dim('height', min=2, max=2048),
            2: torch.export.Dim('width', min=2, max=2048)}
    pair = Pair(size, centred)
    with torch.no_grad():
        traced = torch.export.export(pair, (numbers(2, 11, 13), ), dynamic_shapes=(dims, ), strict=False).module()
    for shape in ((2, 11, 13), (1, 12, 8), (3, 3, 17)):
        x = numbers(*shape)
        sums, merged = traced(x)
        assert torch.equal(merged, x)
        expected = pair(x)[0].unflatten(0, (shape[0], -1))
        assert torch.equal(sums.unflatten(0, (shape[0], -1))[:, :expected.shape[1]], expected)
