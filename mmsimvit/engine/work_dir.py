"""A run's folder: checkpoints are written to their end or not at all, and the last whole one is found again."""
import os
import pickle
import re
import zipfile
from pathlib import Path

import torch
from mmengine.fileio import LocalBackend, register_backend

from ..datasets import is_first_process
from ..files import atomic_write


class WholeFileBackend(LocalBackend):
    """mmengine's files on local disks, which never exist in part."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes; an older file of this name stays until they are all on the disk.

        Raises:
            WriteError: if there is no room, or no permission.
        """

        def write(unfinished: Path) -> None:
            with open(unfinished, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())

        atomic_write(filepath, write)


def write_checkpoints_whole() -> None:
    """Have mmengine write its checkpoints, which it does file by file from their beginning, through the class above."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')


def check_work_dir(work_dir: str | Path) -> None:
    """Write and remove a small file; remove the checkpoints that a killed process has not finished. In the first process alone.

    Raises:
        WriteError: if that cannot be.
    """
    if not is_first_process():
        return
    trial = Path(work_dir, '.trial')
    atomic_write(trial, lambda unfinished: unfinished.write_bytes(bytes(4096)))
    trial.unlink()
    for left in Path(work_dir).glob('.*.pth'):
        if re.match(r'\.\d+\.', left.name):
            left.unlink(missing_ok=True)


def find_whole_checkpoint(work_dir: str | Path) -> str | None:
    """The last checkpoint of a training in ``work_dir`` that was written to its end, or None.

    The newest by the time that it says of itself, for a folder may hold a longer training of before, and its files the times
    of a copy. mmengine's own note of the last one is written after it, and by a path that is wrong once the folder was moved.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    named = {work_dir / Path(pointer.read_text().strip()).name} if pointer.is_file() else set()
    numbered = {path for path in work_dir.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+\.pth', path.name)}
    whole = [path for path in named | numbered if is_whole(path)]
    return str(max(whole, key=_written)) if whole else None


def _written(path: Path) -> tuple:
    """When a checkpoint was written: by itself, to the second, at which iteration, and at last by its file."""
    try:
        checkpoint = torch.load(path, map_location='meta', weights_only=True)  # reads no tensors
        meta = checkpoint.get('meta') or {}
    except (AttributeError, RuntimeError, pickle.UnpicklingError):  # of which loading says more
        meta = {}
    return str(meta.get('time', '')), meta.get('iter', 0), path.stat().st_mtime_ns


def is_whole(path: str | Path) -> bool:
    """Whether a file of ``torch.save`` is there and has its end, without reading the rest."""
    try:
        with open(path, 'rb') as file:
            start = file.read(2)
    except OSError:
        return False
    # The directory of a zip archive is its last part; the format before torch 1.6 has no such mark.
    return zipfile.is_zipfile(path) if start == b'PK' else len(start) == 2
