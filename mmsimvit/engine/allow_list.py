"""The classes that torch may load from mmengine's training checkpoints, without running code."""
import pickle
from collections.abc import Callable
from importlib import import_module

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from ..stacks import read_checkpoints_as_torch_does


def allow_training_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read what mmengine's training checkpoints hold besides tensors.

    Since torch 2.6 only listed classes are unpickled. mmengine 0.10 keeps its log's history in each checkpoint: a
    buffer, the NumPy arrays in it, and its four statistics, which pickle as ``getattr`` of their class.
    """
    multiarray = import_module('numpy._core.multiarray' if hasattr(np, '_core') else 'numpy.core.multiarray')
    functions = [(getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
                 for name in ('_reconstruct', 'scalar') for core in ('core', '_core')]  # named by the NumPy that wrote
    dtypes = [type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'bool')]
    read_checkpoints_as_torch_does()
    torch.serialization.add_safe_globals(
        [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *functions, (_get_statistic, 'builtins.getattr')])


def _get_statistic(owner: type, name: str) -> Callable:
    """The one use of ``getattr`` in a training checkpoint; free use of it would let a stranger's file go further."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed in a checkpoint')
    return getattr(owner, name)
