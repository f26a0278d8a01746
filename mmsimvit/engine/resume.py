"""Resuming: reading mmengine's training checkpoints without running code, and finding the last whole one."""
import pickle
import re
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

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


def find_whole_checkpoint(work_dir: str | Path) -> str | None:
    """The last checkpoint of a training in ``work_dir`` that was written to its end, or None.

    The newest by its time, for a folder may hold a longer training of before; mmengine's own note of the last one is
    written after it, and by a path that is wrong once the folder was moved.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    named = {work_dir / Path(pointer.read_text().strip()).name} if pointer.is_file() else set()
    numbered = {path for path in work_dir.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+\.pth', path.name)}
    whole = [path for path in named | numbered if is_whole(path)]
    return str(max(whole, key=lambda path: path.stat().st_mtime_ns)) if whole else None


def is_whole(path: str | Path) -> bool:
    """Whether a file of ``torch.save`` is there and has its end, without reading the rest."""
    try:
        with open(path, 'rb') as file:
            start = file.read(2)
    except OSError:
        return False
    # The directory of a zip archive is its last part; the format before torch 1.6 has no such mark.
    return zipfile.is_zipfile(path) if start == b'PK' else len(start) == 2
