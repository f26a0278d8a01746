"""The pooling of GPViT's classifier."""
import pytest
import torch
import torch.nn.functional as F

from mmsimvit import QueryPooling


def test_in_words():
    """Of values that are not projected; keys have no bias."""
    torch.manual_seed(0)
    neck = QueryPooling(6, 2).double()
    torch.nn.init.normal_(neck.norm.weight)
    torch.nn.init.normal_(neck.norm.bias)
    x = torch.randn(2, 6, 3, 4).double()
    pixels = x.flatten(2).transpose(1, 2)
    query, keys = F.layer_norm(neck.query[0, 0], (6, ), neck.norm.weight, neck.norm.bias, 1e-5), pixels @ neck.key.weight.T
    expected = []
    for head in (slice(0, 3), slice(3, 6)):
        logits = keys[..., head] @ query[head] / 3**0.5
        expected.append((logits.softmax(-1)[..., None] * pixels[..., head]).sum(1))
    found, = neck((x, ))
    torch.testing.assert_close(found, torch.cat(expected, -1))
    assert sum(p.numel() for p in neck.parameters()) == 6 + 12 + 36


def test_refuses_heads_that_do_not_divide_channels():
    with pytest.raises(ValueError, match='in_channels must be a multiple of num_heads, got 6 and 4'):
        QueryPooling(6, 4)
