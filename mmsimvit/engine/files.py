"""Writing files whole or not at all."""
import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from ..datasets import DataError, is_first_process

CANNOT_WRITE: dict[int | None, str] = {  # an OSError may lack a number
    errno.ENOSPC: 'make room', errno.EDQUOT: 'make room within the quota', errno.EFBIG: 'raise the limit of file sizes',
    errno.EACCES: 'allow it', errno.EPERM: 'allow it', errno.EROFS: 'allow it', errno.ENOTDIR: 'remove the file in its way',
    errno.EEXIST: 'remove the file in its way'}


class WriteError(DataError):
    """A file that could not be written; the message names it, the reason and what to do."""

    def __init__(self, path: str | Path, error: OSError) -> None:
        super().__init__(f'{path} cannot be written: {error.strerror}; {CANNOT_WRITE[error.errno]}, or name another folder. '
                         'What was written before is whole')


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a hidden file beside ``path``, of the same suffix, that then takes its name.

    Raises:
        WriteError: if there is no room, or no permission.
    """
    path = Path(path)
    unfinished = path.with_name(f'.{os.getpid()}.{path.name}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(unfinished)
        unfinished.replace(path)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise WriteError(path, error) from error
    finally:
        with suppress(NotADirectoryError):  # where a file is in the folder's way
            unfinished.unlink(missing_ok=True)


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

        write_whole(filepath, write)


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
    write_whole(trial, lambda unfinished: unfinished.write_bytes(bytes(4096)))
    trial.unlink()
    for left in Path(work_dir).glob('.*.pth'):
        if re.match(r'\.\d+\.', left.name):
            left.unlink(missing_ok=True)
