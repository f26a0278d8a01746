"""Numbers that published code gives, for weights and images that anyone can make again.

Each ``<system>.json`` lists, for every variant, the published parameters (``state``: name -> shape) and what the published
code computed in float64 (``cases``) when its parameters were set by ``parameter`` and its input by ``image``. Of
each output, 64 values at fixed flat positions are kept with the standard deviation of the whole.
"""
import json
import zlib
from pathlib import Path

import numpy as np
import torch


def load(system: str) -> dict:
    return json.loads((Path(__file__).parent / f'{system}.json').read_text())


def noise(name: str, count: int) -> np.ndarray:
    """``count`` numbers in [-1, 1) that depend on the name alone: splitmix64 of the position."""
    with np.errstate(over='ignore'):
        bits = np.arange(count, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode())) * np.uint64(1 << 32)
        bits = (bits + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1


def parameter(name: str, shape: list[int]) -> torch.Tensor:
    """Norm weights and variances around 1, biases and means within 0.2, other weights uniform with variance 1 / fan-in."""
    if name.endswith('num_batches_tracked'):
        return torch.tensor(0)
    values = noise(name, int(np.prod(shape))).reshape(shape)
    if len(shape) == 1:
        values = 1 + 0.2 * values if name.endswith(('weight', 'running_var')) else 0.2 * values
    else:
        values = values * np.sqrt(3 / np.prod(shape[1:]))
    return torch.from_numpy(values)


def image(shape: list[int]) -> torch.Tensor:
    return torch.from_numpy(1.7 * noise('image', int(np.prod(shape))).reshape(shape))


def state_dict(variant: dict) -> dict[str, torch.Tensor]:
    """The published state dict with every parameter set."""
    return {name: parameter(name, shape) for name, shape in variant['state'].items()}


def error(output: torch.Tensor, expected: dict) -> float:
    """The largest difference from the kept values, in units of the published output's standard deviation."""
    assert list(output.shape) == expected['shape']
    found = output.detach().double().flatten()[expected['index']]
    return ((found - torch.tensor(expected['value'], dtype=torch.float64)).abs().max() / expected['std']).item()
